"""Hidden states: the norms of words, from generic to specific, and how many directions are used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helm_megatron.analysis.words import WordsError

# Lists that come with the package, by name.
GROUPS = {path.stem: path for path in sorted(Path(__file__).parent.glob("word_groups/*.tsv"))}


@dataclass(frozen=True)
class WordNorms:
    """Norms of the space coordinates of words' states.

    Attributes:
        group: of each word, counted from the most generic one.
        layer: after the last layer.
        normed: after the final norm, where the logits are made.
    """

    names: list[str]
    group: Tensor
    layer: Tensor
    normed: Tensor

    def mean(self, norms: Tensor, group: int) -> tuple[float, float]:
        """The mean of a group's norms, and its standard error."""
        own = norms[self.group == group].double()
        return own.mean().item(), (own.std() / len(own) ** 0.5).item()


def read_groups(path: Path) -> dict[str, list[str]]:
    """Words by group, generic to specific, from lines `group<TAB>word`; lines with # are comments.

    Raises:
        WordsError: the file cannot be read, a line is none of these, a word comes twice, or there
            are no two groups of two words or more.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WordsError(f"--word-groups {path}: {error}") from error
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        group, tab, word = line.partition("\t")
        if not tab or not group.strip() or not word.strip():
            raise WordsError(f"--word-groups {path}, line {number}: not a group, a tab and a word")
        groups.setdefault(group.strip(), []).append(word.strip())
    words = [word for group in groups.values() for word in group]
    if len(set(words)) < len(words):
        twice = next(word for word in words if words.count(word) > 1)
        raise WordsError(f"--word-groups {path}: {twice!r} is there twice")
    if len(groups) < 2 or min(map(len, groups.values())) < 2:
        raise WordsError(f"--word-groups {path}: needs two groups or more, of two words or more")
    return groups


@torch.no_grad()
def word_norms(model: Any, tokenizer: Any, groups: dict[str, list[str]]) -> WordNorms:
    """Norms of the states at the last token of each word, which stands alone in the text."""
    layer, normed, group = [], [], []
    for number, words in enumerate(groups.values()):
        for word in words:
            ids = torch.tensor([tokenizer(f" {word}", add_special_tokens=False).input_ids])
            out = model.model(ids, output_hidden_states=True, use_cache=False)
            layer.append(out.hidden_states[-1][0, -1].float().norm())
            normed.append(out.last_hidden_state[0, -1].float().norm())
            group.append(number)
    return WordNorms(list(groups), torch.tensor(group), torch.stack(layer), torch.stack(normed))


def effective_rank(states: Tensor) -> float:
    """How many directions the states `[n, d]` use (Roy and Vetterli, 2007): 1 to min(n - 1, d).

    The exponential of the entropy of the singular values, as parts of their sum, of the states less
    their mean. Of Lorentz points these are space coordinates. 0 where all states are the same.
    """
    spread = states.double() - states.double().mean(0)
    values = torch.linalg.svdvals(spread)
    if not values.sum() > 0:
        return 0.0
    parts = values / values.sum()
    return torch.special.entr(parts).sum().exp().item()
