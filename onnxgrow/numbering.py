"""Names that carry the depth: which number in them counts layers, and what they are called at another depth.

Names of equal places in all blocks are laid side by side; a number that rises by one from layer to layer is the depth, and the word
before it (`layers.7`, `h_7`, `past_key_7`) is how this file writes it. That word is then renumbered in every text of a block.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = re.compile(r"(?<![A-Za-z])([A-Za-z]+)([._/:\-]{0,2})(\d+)(?!\d)")


@dataclass(frozen=True)
class Numbering:
    """Words that count layers: word -> (number in the first block, step from block to block)."""

    words: dict[str, tuple[int, int]]

    def at(self, text: str, block: int, position: int) -> str:
        """A text of block number `block` as it reads at another position."""
        def renumber(found: re.Match) -> str:
            word, between, number = found.groups()
            if word not in self.words:
                return found[0]
            first, step = self.words[word]
            inner = int(number) - first - step * block  # which layer of the block
            return f"{word}{between}{first + step * position + inner}" if 0 <= inner < step else found[0]
        return NUMBER.sub(renumber, text)

    def numbered(self, text: str, block: int) -> bool:
        """Whether a text of a block reads differently elsewhere."""
        return self.at(text, block, block + 1) != text


def find_numbering(groups: Iterable[tuple[str, ...]], period: int, before: int) -> Numbering:
    """Learn from names of equal places, one group per place with a name for each block in order.

    Args:
        period: layers in a block; a number may count layers or blocks.
        before: layers in front of the blocks: counting starts there, from 0 or from 1.
    """
    votes: Counter = Counter(found for names in groups for found in _rising(names))
    words: dict[str, tuple[int, int]] = {}
    for word, step in dict.fromkeys((word, step) for word, _, step in votes if step in (1, period)):
        firsts = {first: count for (w, first, s), count in votes.items() if (w, s) == (word, step) and before <= first <= before + period}
        if firsts and step == period > 1:  # each layer of a block counts from its own place in it
            words[word] = (min(firsts), step)
        elif firsts:
            words.setdefault(word, (max(firsts, key=firsts.get), step))
    return Numbering(words)


def _rising(names: tuple[str, ...]) -> Iterable[tuple[str, int, int]]:
    """(word, number in the first name, step) of each number that rises steadily through the names."""
    found = [NUMBER.findall(name) for name in names]
    if len({len(f) for f in found}) != 1:
        return
    for column in zip(*found):
        numbers = [int(number) for _, _, number in column]
        steps = {b - a for a, b in zip(numbers, numbers[1:])}
        if len({word for word, _, _ in column}) == 1 and len(steps) == 1:
            yield column[0][0], numbers[0], steps.pop()


def single_numbering(weights: Iterable[str]) -> Numbering:
    """For a block without a neighbour to compare with: the first number that most of its weights have, behind one word."""
    counts = Counter((found[1], int(found[3])) for name in weights if (found := NUMBER.search(name)) and found[2] and int(found[3]) in (0, 1))
    (word, first), most = counts.most_common(1)[0] if counts else (("", 0), 0)
    return Numbering({word: (first, 1)} if most > 1 else {})
