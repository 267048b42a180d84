"""Print what makes a shell complete `edgevla`: verbs, options, and the values of options that have a closed list.

    eval "$(edgevla completion bash)"                                    in ~/.bashrc
    eval "$(edgevla completion zsh)"                                     in ~/.zshrc, behind compinit
    edgevla completion fish > ~/.config/fish/completions/edgevla.fish

It is made of the parsers themselves, so print it again after an update.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")
Options = Mapping[str, Sequence[argparse.Action]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    from edgevla.cli import VERBS, _parser_for

    options = {verb: list(_with_those_below(_parser_for(verb)[0]._actions)) for verb in VERBS}
    if args.shell == "fish":
        print("\n".join(fish({verb: summary for verb, (_, summary) in VERBS.items()}, options)))
    else:
        print("\n".join(bash(options, is_zsh=args.shell == "zsh")))
    return 0


def _with_those_below(actions: Sequence[argparse.Action]) -> Iterator[argparse.Action]:
    """A verb's own, then the options of its subcommands, such as `edgevla dataset DIR delete -o`."""
    yield from actions
    known = {option for action in actions for option in action.option_strings}
    for action in actions:
        for parser in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            for below in parser._actions:
                if below.option_strings and known.isdisjoint(below.option_strings):
                    known.update(below.option_strings)
                    yield below


def values_of(action: argparse.Action) -> list[str]:
    """What may stand behind an option, or as a positional; empty where that is no closed list."""
    if action.dest in ("robot", "leader"):  # or a path, which the shell completes
        names: list[str] = importlib.import_module("edgevla.robots.profile").profile_names()
        return names
    return [str(choice) for choice in action.choices or ()]


def bash(options: Options, is_zsh: bool = False) -> Iterator[str]:
    """A function for bash's `complete`; zsh runs the same one. Where it has nothing to offer, files are completed."""
    if is_zsh:
        yield "autoload -Uz bashcompinit && bashcompinit"
    yield from ("_edgevla() {", '    local word="${COMP_WORDS[COMP_CWORD]}" words=""')
    yield '    case "$COMP_CWORD,${COMP_WORDS[1]},${COMP_WORDS[COMP_CWORD-1]}" in'
    yield f"        1,*) words={shlex.quote(' '.join(['help', *options]))} ;;"
    yield f"        2,help,*) words={shlex.quote(' '.join(options))} ;;"
    for verb, actions in options.items():
        place = 2
        for action in actions:
            values = shlex.quote(" ".join(values_of(action)))
            if action.option_strings and values_of(action):
                patterns = "|".join(f"*,{verb},{option}" for option in action.option_strings)
                yield f"        {patterns}) words={values} ;;"
            elif values_of(action):
                yield f"        {place},{verb},*) words={values} ;;"
            place += not action.option_strings
    yield from ("    esac", '    [ -n "$words" ] || case "${COMP_WORDS[1]},$word" in')
    for verb, actions in options.items():
        names = shlex.quote(" ".join(option for action in actions for option in action.option_strings))
        yield f"        {verb},-*) words={names} ;;"
    yield from ("    esac", '    COMPREPLY=($(compgen -W "$words" -- "$word"))', "}")
    yield "complete -o default -F _edgevla edgevla"


def fish(summaries: Mapping[str, str], options: Options) -> Iterator[str]:
    """One `complete` a line, with the first words of the help beside each."""
    yield "complete -c edgevla -n __fish_use_subcommand -f -a help -d 'what a verb does'"
    for verb, summary in summaries.items():
        yield f"complete -c edgevla -n __fish_use_subcommand -f -a {verb} -d {_quoted(summary)}"
        for action in options[verb]:
            words = [f"complete -c edgevla -n '__fish_seen_subcommand_from {verb}'"]
            for option in action.option_strings:
                words.append(f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}")
            if values_of(action):
                words.append(f"-a {_quoted(' '.join(values_of(action)))}")
            if action.option_strings and action.nargs != 0:
                words.append("-r")
            if action.help:
                words.append(f"-d {_quoted(action.help.replace('%%', '%').partition(';')[0][:70])}")
            if action.option_strings or values_of(action):
                yield " ".join(words)


def _quoted(text: str) -> str:
    """Between fish's single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
