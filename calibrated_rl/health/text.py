"""Words of a text in any script, and the longest piece that two texts have in common."""

import re
from collections.abc import Sequence
from functools import lru_cache

_NO_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts that are written without spaces, of which every character counts as a word: kana and Han."""
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\W_{_NO_SPACES}]+(?:['’][^\W_{_NO_SPACES}]+)*")
_QUOTED = re.compile(r'"[^"\n]*"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」')
_CLAUSE = re.compile(r"[.!?,;:…\n¡¿。！？、，；]+|(?<=\s)[-–—](?=\s)")
QUESTION_MARKS = "?？؟"


def plain(text: str) -> str:
    """``text`` with straight apostrophes, joined to their words as people write them: corpora set them apart."""
    return re.sub(r" (?='(?:m|s|d|re|ve|ll)\b|n't\b)", "", text.replace("’", "'"))


@lru_cache(maxsize=20_000)
def words(text: str) -> tuple[str, ...]:
    """The words of ``text`` without case and marks; of scripts without spaces each character."""
    return tuple(word.casefold().replace("’", "'") for word in _WORD.findall(text))


def is_written_without_spaces(word: str) -> bool:
    """Whether ``words`` took a single character of such a script for a word."""
    return len(word) == 1 and re.match(rf"[{_NO_SPACES}]", word) is not None


def without_quotations(text: str) -> str:
    """``text`` without what stands between quotation marks: somebody else's words."""
    return _QUOTED.sub(" ", text)


def clauses(text: str) -> list[str]:
    """The parts of ``text`` between punctuation marks, without blank ones."""
    return [part.strip() for part in _CLAUSE.split(text) if part.strip()]


def asks(text: str) -> bool:
    """Whether there is a question mark in it, of any script."""
    return any(mark in text for mark in QUESTION_MARKS)


def contains(words_: Sequence[str], piece: Sequence[str]) -> bool:
    """Whether ``piece`` stands in ``words_`` in one run."""
    return bool(positions(words_, piece))


def positions(words_: Sequence[str], piece: Sequence[str]) -> list[int]:
    """Where runs that equal ``piece`` begin in ``words_``."""
    length, wanted = len(piece), tuple(piece)
    return [at for at in range(len(words_) - length + 1) if tuple(words_[at : at + length]) == wanted] if length else []


def longest_common_run(first: Sequence[str], second: Sequence[str], least: int = 1) -> tuple[str, ...]:
    """The longest run of words that both have, the earliest in ``first`` of several; empty if it is shorter than
    ``least``."""
    grams = {tuple(second[at : at + least]) for at in range(len(second) - least + 1)}
    if not any(tuple(first[at : at + least]) in grams for at in range(len(first) - least + 1)):
        return ()
    best, end = 0, 0
    row = [0] * (len(second) + 1)
    for place, word in enumerate(first, start=1):
        row = [0, *(row[column] + 1 if word == other else 0 for column, other in enumerate(second))]
        if (longest := max(row)) > best:
            best, end = longest, place
    return tuple(first[end - best : end]) if best >= least else ()
