"""The command line: verbs and where they live, no work.

Each verb's module is imported when its verb is named, and offers two functions:
`add_arguments(parser)` and `run(args) -> int` (exit code). Such a module imports nothing heavy at its top,
so `--help` is instant. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from typing import NoReturn

from edgevla import __version__
from edgevla.errors import EdgeVLAError, MissingExtraError, UsageError
from edgevla.strict import nearest

VERBS: dict[str, tuple[str, str]] = {
    "train": ("edgevla.train.cli", "train a policy on a LeRobot dataset"),
    "export": ("edgevla.export.cli", "compile a checkpoint into a policy bundle"),
    "build": ("edgevla.launch.build_cli", "build a bundle's TensorRT engines, ahead of its deployment"),
    "bench": ("edgevla.bench_cli", "measure how fast a bundle infers on this machine, and what that allows"),
    "eval": ("edgevla.evaluation.cli", "compare what policies would do with what was recorded"),
    "deploy": ("edgevla.launch.deploy_cli", "run a bundle on a robot, real or emulated"),
    "serve": ("edgevla.serve.serve_cli", "let robots use policies that run on this machine"),
    "pair": ("edgevla.serve.pair_cli", "let this robot and a policy server know each other's keys"),
    "push": ("edgevla.push.push_cli", "bring a bundle and its runtime to a robot's computer, over ssh"),
    "monitor": ("edgevla.monitor.cli", "watch and steer a running deployment"),
    "record": ("edgevla.launch.record_cli", "record a running robot into a LeRobot dataset"),
    "dataset": ("edgevla.dataset.edit_cli", "delete, merge, split or relabel episodes of a LeRobot dataset"),
    "replay": ("edgevla.launch.replay_cli", "play a recorded episode on a robot"),
    "demo": ("edgevla.demo.cli", "the whole story on a simulated arm, in minutes"),
    "teleop": ("edgevla.robots.teleop", "move a robot by hand with a leader arm"),
    "calibrate": ("edgevla.robots.tools.calibrate_cli", "calibrate an arm, or compare file and servos"),
    "setup-motors": (
        "edgevla.robots.tools.setup_motors_cli",
        "give new servos their ids and speed, one by one",
    ),
    "emulate": ("edgevla.robots.emulator.cli", "servos behind a pseudo-terminal, real protocol"),
    "inspect": ("edgevla.inspect_cli", "say what is in a dataset, checkpoint or bundle, and check it"),
    "view": ("edgevla.view.view_cli", "draw episodes of a dataset or a run; export for Rerun and Foxglove"),
    "service": ("edgevla.launch.service_cli", "let systemd run a deployment, from boot on"),
    "doctor": ("edgevla.robots.tools.doctor", "find out what is wrong with a robot's ports and servos"),
    "completion": ("edgevla.completion_cli", "let bash, zsh or fish complete all this"),
}


class Parser(argparse.ArgumentParser):
    """What is wrong with the options is one sentence, as any other error."""

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UsageError: always.
        """
        words = re.sub(r"^(-\S+): (?=.+ must be )", r"\1 ", message.removeprefix("argument "))
        if unknown := re.search(r"^unrecognized arguments: (--[^\s=]+)", message):
            words += nearest(unknown[1], self._option_string_actions)
        raise UsageError(f"{words} ({self.prog} --help says all)")


class Help(argparse.RawDescriptionHelpFormatter):
    """Every default that is a value is shown, where the sentence does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_value = isinstance(action.default, int | float | str) and not isinstance(action.default, bool)
        if not is_value or action.default in ("", argparse.SUPPRESS) or "default" in (action.help or ""):
            return action.help
        return f"{action.help or ''} (default: %(default)s)".lstrip()


def _parser_for(verb: str) -> tuple[argparse.ArgumentParser, object]:
    from edgevla import config_file  # the overview needs none of it

    module_name, summary = VERBS[verb]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f"edgevla {verb}", description=module.__doc__ or summary)
    parser.formatter_class = Help
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    config_file.add_argument(verb, parser)
    module.add_arguments(parser)
    return parser, module


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: edgevla VERB [options]      edgevla VERB --help says more\n\n"
        f"{verbs}\n\nStart with: edgevla demo\n"
    )


def open_standard_streams() -> None:
    """Where whoever started this has closed them, as some daemons do: else the next file, a servo's port for one, would
    get their numbers, and with them every word that a library writes to its standard error."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def main(argv: list[str] | None = None) -> int:
    """Runs one verb and turns its outcome into an exit code."""
    open_standard_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["help"] and argv[1:]:  # `edgevla help deploy` is `edgevla deploy --help`
        argv = [argv[1], "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0
    if argv[0] == "--version":
        print(f"edgevla {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        print(
            f"edgevla: unknown verb '{verb}'{nearest(verb, VERBS)}\n\n{_overview()}", end="", file=sys.stderr
        )
        return 2
    verbose = False
    try:
        parser, module = _parser_for(verb)
        from edgevla import config_file

        args = config_file.parse(verb, parser, argv[1:])
        verbose = args.verbose
        return int(module.run(args) or 0)  # type: ignore[attr-defined]
    except EdgeVLAError as error:
        if verbose:
            raise
        print(f"edgevla {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        if verbose:
            raise
        print(f"edgevla {verb}: {_missing_module(error)}", file=sys.stderr)
        return 1
    except RecursionError:
        if verbose:
            raise
        what = "a file that was read is nested thousands of levels deep, which no dataset, checkpoint or bundle is"
        print(f"edgevla {verb}: {what}; fetch it again (--verbose says where)", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if verbose or (words := _of_a_path(error)) is None:
            raise
        print(f"edgevla {verb}: {words}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nedgevla {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `edgevla inspect ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if verbose:
            raise
        where = f"{error.filename}: " if error.filename else ""
        cure = "check the path, its permissions, and the room on the disk"
        print(f"edgevla {verb}: {where}{error.strerror or error}; {cure}", file=sys.stderr)
        return 1


def _of_a_path(error: RuntimeError) -> str | None:
    """What pathlib has no class of its own for; None: it is something else."""
    if "home directory" in str(error):
        what = "a path begins with '~' and a user that this machine does not know, or nobody's home is known here"
        return f"{what}; write the path in full, or set HOME"
    if "Symlink loop" in str(error):  # Python up to 3.12
        return f"{error}: the link leads to itself; remove it, or name what it should lead to"
    return None


EXTRA_OF_MODULE = {
    "torch": "train",
    "safetensors": "train",
    "transformers": "train",
    "huggingface_hub": "train",
    "matplotlib": "train",
    "onnx": "train",
    "onnxscript": "train",
    "peft": "train",
    "pyarrow": "record",
    "av": "record",
    "onnxruntime": "cpu",
    "tokenizers": "language",
}


def _missing_module(error: ModuleNotFoundError) -> str:
    module = (error.name or "").split(".")[0]
    extra = EXTRA_OF_MODULE.get(module)
    if extra is None:
        from edgevla.extras import reinstall_words

        return f"the Python module '{module}' is missing; reinstall with: {reinstall_words()}"
    return str(MissingExtraError(extra, module))
