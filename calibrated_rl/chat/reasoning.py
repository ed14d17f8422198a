"""Reasoning: what a side thinks before it speaks, and how it is separated from its turn.

A model that reasons marks where a thought begins and where it ends, mostly by two added tokens (``<think>``,
``</think>``). What stands between is the side's own (docs/architecture.md, contract 2): it stays in its token ids, and
its text is without it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_NAMES = ("think", "thought", "reason")
"""What names of such tokens contain."""
_OPENINGS = (("/", ""), ("END", "START"), ("END", "BEGIN"), ("end", "start"), ("end", "begin"))
"""How the name of an opening token comes from that of the closing one: ``</think>``, ``<|END_THINKING|>``."""
_IN_TEXT = re.compile(r"</(think|thinking|thought|reasoning)>")


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """The marks of one model."""

    pairs: Mapping[str, str]
    """Closing mark by opening mark; empty for a model that does not reason."""
    are_tokens: bool = True
    """Whether they are added tokens; else the model spells them in plain text."""

    @property
    def all(self) -> list[str]:
        """Opening and closing ones."""
        return [*self.pairs, *self.pairs.values()]

    def __contains__(self, text: str) -> bool:
        return text in self.pairs or text in self.pairs.values()


def find_marks(added: Collection[str], template: str) -> ReasoningMarks:
    """The marks among the added tokens of a vocabulary; where there are none, those that the template looks for in
    plain text."""
    pairs: dict[str, str] = {}
    for closing in added:
        if any(name in closing.lower() for name in _NAMES):
            openings = {closing.replace(closing_word, opening_word, 1) for closing_word, opening_word in _OPENINGS} - {
                closing
            }
            pairs |= {opening: closing for opening in openings.intersection(added)}
    if pairs:
        return ReasoningMarks(pairs)
    return ReasoningMarks({f"<{name}>": f"</{name}>" for name in _IN_TEXT.findall(template)}, are_tokens=False)


def without_reasoning(
    pieces: Sequence[T], opens: Collection[T], closes: Collection[T], inside: bool
) -> tuple[list[T], bool]:
    """The pieces that are spoken, and whether the last thought was left unfinished.

    What stands before a closing mark that nothing has opened is a thought as well, as templates take it that look for
    the closing mark alone.

    Args:
        inside: the first piece is part of a thought.
    """
    spoken: list[T] = []
    for piece in pieces:
        if piece in opens:
            inside = True
        elif piece in closes:
            if not inside:
                spoken.clear()
            inside = False
        elif not inside:
            spoken.append(piece)
    return spoken, inside


def divider(parts: Collection[str]) -> re.Pattern[str]:
    """Pattern that matches any of ``parts``, the longest where several match."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, parts), key=len, reverse=True))) or "(?!)")


def divided(at: re.Pattern[str], text: str) -> list[str]:
    """``text`` cut before and after each match; no piece is empty."""
    pieces, position = [], 0
    for match in at.finditer(text):
        pieces += [text[position : match.start()], match[0]]
        position = match.end()
    return [piece for piece in (*pieces, text[position:]) if piece]
