"""Final answers: how a policy gives one, and whether it is the right one."""

import logging
import re

from math_verify import parse, verify  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

LONGEST = 120
"""Characters of an answer; a longer one is no final answer."""
_LINE = re.compile(r"^[ \t*]*(?:final[ \t]+)?answer[ \t*]*:[ \t*]*(.+?)[ \t*]*$", re.I | re.M)
_POWER = re.compile(r"(?:\^|\*\*)\s*\{?\s*(-?\d+|[a-z])?\s*\}?", re.I)
"""An exponent: a small number or a letter, or something else, which has no group."""
_UNIT = re.compile(r"(\$?-?[\d,]*\.?\d+)\s+[a-z]{2}[a-z .]*", re.I)
"""A number with words after it, which LaTeX would take for factors."""
LARGEST_POWER = 100
"""Computing larger ones may take as long as one likes."""


def answer_of(text: str) -> str | None:
    """The answer in the last line of ``text`` that gives one, such as ``Answer: 72``; None: there is none."""
    lines = _LINE.findall(text)
    return lines[-1] if lines else None


def is_right(answer: str, expected: str) -> bool:
    """Whether two answers, numbers or LaTeX, are the same mathematically (``math-verify``), units and words aside; or
    the same text, for an expected answer that is no mathematics."""
    if _bare(answer) == _bare(expected):
        return True
    if not _safe(answer):
        return False
    unit = _UNIT.fullmatch(answer)
    return _parsed_equal(answer, expected) or (unit is not None and _parsed_equal(unit[1], expected))


def _safe(answer: str) -> bool:
    """Whether it is soon computed: ``math-verify`` stops what takes long by signals, which main threads alone use."""
    if len(answer) > LONGEST or "!" in answer:
        return False
    powers = _POWER.findall(answer)
    return all(power and (power.isalpha() or abs(int(power)) <= LARGEST_POWER) for power in powers) and not re.search(
        r"(\^|\*\*)[^+\-*/=,]*(\^|\*\*)", answer
    )


def _parsed_equal(answer: str, expected: str) -> bool:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of each call without a time-out
    try:
        gold, given = (parse(_latex(text), parsing_timeout=None) for text in (expected, answer))
        return bool(gold and given and verify(gold, given, timeout_seconds=None))
    except (ArithmeticError, ValueError, TypeError, RecursionError, NotImplementedError) as error:
        # A policy may write anything, and sympy fails in many ways at what is no mathematics: that is a wrong answer.
        logger.debug(f"{answer!r} cannot be compared with {expected!r}: {error!r}")
        return False


def _bare(text: str) -> str:
    return "".join(text.replace("$", "").split()).rstrip(".").lower()


def _latex(text: str) -> str:
    return text if "$" in text or "\\(" in text else f"${text}$"
