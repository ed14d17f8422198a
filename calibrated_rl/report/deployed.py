"""Which of the two held-out evaluations stands first: greedy, as policies are deployed; sampled, as they are trained.

Summaries of older runs compare arms only as sampled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Decoding:
    """One way to decode, and where the summary has its metrics."""

    name: str
    setting: str
    """Key below an arm."""
    paired: str
    gap_closed: str


GREEDY = Decoding("greedy", "held_out_greedy", "paired_greedy", "gap_closed_greedy")
SAMPLED = Decoding("sampled", "held_out", "paired", "gap_closed")


def decodings(summary: Mapping[str, Any]) -> tuple[Decoding, ...]:
    """Those in which the arms of ``summary`` are compared, that of deployment first."""
    return (GREEDY, SAMPLED) if summary.get(GREEDY.paired) else (SAMPLED,)


def deployed(summary: Mapping[str, Any]) -> Decoding:
    """The one whose metrics stand where one alone is shown."""
    return decodings(summary)[0]
