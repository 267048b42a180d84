"""From a task and a state to tokens: the non-numeric half of a policy, used by training and by the robot alike.

    task -> cleaned -> template (with the state's bins, Pi0.5) -> tokenizer -> cut or padded to n_tokens

Everything that differs between policies is data in the recipe (`prompt` in the manifest); this file knows no policy
but GR00T, whose template depends on the cameras.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevla.errors import BundleError, MissingExtraError
from edgevla.manifest import PromptRecipe, PromptState
from edgevla.strict import Mismatch, nearest, read

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLEANERS = {
    "strip": str.strip,
    "underscore_to_space": lambda task: task.replace("_", " "),
    "newline_to_space": lambda task: task.replace("\n", " "),
    "ensure_newline": lambda task: task if task.endswith("\n") else task + "\n",
    "list_repr": lambda task: str([task]),
    "lower_no_punctuation": lambda task: "".join(c for c in task.lower() if c.isalnum() or c.isspace()),
}

GROOT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{images}{task}<|im_end|>\n<|im_start|>assistant\n"
)


def groot_template(n_cameras: int, tokens_per_image: int) -> str:
    """GR00T's chat template with its image placeholders written out: their number is fixed by the cameras."""
    images = "".join(
        f"<image {i + 1}><img>{'<IMG_CONTEXT>' * tokens_per_image}</img>" for i in range(n_cameras)
    )
    return GROOT_TEMPLATE.replace("{images}", images)


def check_extra(recipe: PromptRecipe | None) -> None:
    """Raises MissingExtraError where a policy that reads text cannot."""
    if recipe is not None and importlib.util.find_spec("tokenizers") is None:
        raise MissingExtraError("language", "tokenizers", "the policy reads its task as text")


@dataclass(frozen=True)
class Prompt:
    """tokens: int64 (B, L). mask: bool (B, L), true where a token is real."""

    tokens: np.ndarray
    mask: np.ndarray


class PromptBuilder:
    """Builds prompts by one recipe. Text that was tokenised lately is not tokenised again."""

    N_KEPT = 512

    def __init__(self, recipe: PromptRecipe, tokenizer: Tokenizer) -> None:
        for name in recipe.clean_task:
            if name not in CLEANERS:
                raise BundleError(
                    f"the prompt recipe cleans tasks by '{name}', which is unknown{nearest(name, CLEANERS)}"
                )
        self.recipe = recipe
        self._tokenizer = tokenizer
        self._kept: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._has_warned = False
        spec = recipe.tokenizer
        tokenizer.no_padding()
        if spec.truncation:
            tokenizer.enable_truncation(max_length=spec.n_tokens)
        else:
            tokenizer.no_truncation()

    @classmethod
    def from_recipe(cls, recipe: PromptRecipe | Mapping[str, Any], folder: Path) -> PromptBuilder:
        """folder: what the tokenizer's path is relative to.

        Raises:
            BundleError: a recipe that says something unknown, or a tokenizer file that is missing or unreadable.
            MissingExtraError: the tokenizer is not installed.
        """
        if not isinstance(recipe, PromptRecipe):
            try:
                recipe = read(PromptRecipe, dict(recipe), "prompt")
            except Mismatch as error:
                raise BundleError(str(error)) from None
        path = folder / recipe.tokenizer.file
        if not path.is_file():
            raise BundleError(f"the tokenizer {path} is missing")
        check_extra(recipe)
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"the tokenizer {path} is damaged ({error})") from error
        return cls(recipe, tokenizer)

    def text(self, task: str, state: np.ndarray | None = None) -> str:
        """The prompt as a person may read it. state: raw (S,), robot units, where the recipe writes it.

        An empty task is the recipe's default one, where it has one.
        """
        task = task or self.recipe.default_task or ""
        for name in self.recipe.clean_task:
            task = CLEANERS[name](task)
        text = self.recipe.template
        if self.recipe.state is not None:
            if state is None:
                raise BundleError(f"prompts of '{self.recipe.recipe}' hold the state, but none was given")
            bins = discretise(normalise_state(state, self.recipe.state), self.recipe.state.n_bins)
            text = text.replace("{state}", " ".join(map(str, bins)))
        return text.replace("{task}", task)

    def build(self, tasks: Sequence[str], states: np.ndarray | None = None) -> Prompt:
        """One row per task. states: raw (B, S), robot units; needed where the recipe writes the state.

        A prompt that is too long is cut with a warning where the reference cuts it, else refused with its length.
        """
        rows = [
            self._encode(self.text(t, None if states is None else states[i])) for i, t in enumerate(tasks)
        ]
        tokens, mask = np.stack([tokens for tokens, _ in rows]), np.stack([mask for _, mask in rows])
        spec = self.recipe.tokenizer
        if spec.padding == "longest":
            n = int(mask.sum(axis=1).max())
            kept = slice(n) if spec.padding_side == "right" else slice(spec.n_tokens - n, None)
            tokens, mask = tokens[:, kept], mask[:, kept]
        return Prompt(tokens, mask)

    def _encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        spec = self.recipe.tokenizer
        encoding = self._tokenizer.encode(text, add_special_tokens=spec.add_bos)
        ids = encoding.ids
        if encoding.overflowing and not self._has_warned:
            self._has_warned = True  # once: Pi0.5's text differs at every observation
            n = len(ids) + sum(len(o.ids) for o in encoding.overflowing)
            warnings.warn(
                f"the prompt has about {n} tokens and was cut to {spec.n_tokens}; shorten the task: {text[:80]!r}",
                stacklevel=4,
            )
        if len(ids) > spec.n_tokens:
            raise BundleError(
                f"the prompt has {len(ids)} tokens, the policy takes {spec.n_tokens}; shorten the task"
            )
        n_pad = spec.n_tokens - len(ids)
        sides = (0, n_pad) if spec.padding_side == "right" else (n_pad, 0)
        tokens = np.pad(np.array(ids, np.int64), sides, constant_values=spec.pad_id)
        mask = np.pad(np.ones(len(ids), np.bool_), sides)
        self._kept[text] = tokens, mask
        if len(self._kept) > self.N_KEPT:
            self._kept.popitem(last=False)
        return tokens, mask


def normalise_state(state: np.ndarray, recipe: PromptState) -> np.ndarray:
    """Raw (S,) -> float32 normalised (S,), padded with zeros to `pad_to`. Bit-equal with the torch normaliser."""
    x = np.asarray(state, np.float32)
    a, b = np.asarray(recipe.a, np.float32), np.asarray(recipe.b, np.float32)
    y: np.ndarray = x
    if recipe.mode == "IDENTITY":
        pass
    elif x.shape != a.shape:
        raise BundleError(f"the prompt takes a state of {a.size} values, not {x.shape}")
    elif recipe.mode == "MEAN_STD":
        y = (x - a) / (b + np.float32(recipe.eps))
    else:
        width = np.where(b == a, np.float32(recipe.eps), b - a)
        y = np.float32(2) * (x - a) / width - np.float32(1)
    n_pad = max(0, (recipe.pad_to or 0) - len(y))
    return np.pad(y, (0, n_pad))


def discretise(x: np.ndarray, n_bins: int) -> np.ndarray:
    """Bin numbers as the reference counts them: -1 below -1, n_bins - 1 from the last edge on; no other clipping.

    Edges are float64, values float32 (`numpy.digitize`), so a value on an edge belongs to the bin above it.
    """
    edges = np.linspace(-1, 1, n_bins + 1)[:-1]
    return np.digitize(np.asarray(x, np.float32), edges) - 1
