"""Which turns are too old to learn from, where rollouts run on while the learner steps.

A dialogue may span several weight updates. Staleness of a turn is ``update - version``, ``version`` being that
of the oldest weights that sampled a token of it: by how many updates they lag behind those that are to be updated.
"""

from dataclasses import dataclass

import numpy as np

from calibrated_rl.data.dialogue import TokenSequence


@dataclass(frozen=True, slots=True)
class Staleness:
    """Of the sampled turns of one or more sequences."""

    turns: int = 0
    """How many there are."""
    total: int = 0
    """Their staleness, added up, in updates."""
    maximum: int = 0
    """The highest of any turn, in updates."""
    left_out: int = 0
    """Turns that were too stale."""

    def __add__(self, addend: "Staleness") -> "Staleness":
        return Staleness(
            self.turns + addend.turns, self.total + addend.total, max(self.maximum, addend.maximum),
            self.left_out + addend.left_out,
        )  # fmt: skip

    def metrics(self) -> dict[str, float]:
        turns = max(1, self.turns)
        return {
            "staleness": self.total / turns,
            "staleness_max": float(self.maximum),
            "stale_turns_share": self.left_out / turns,
        }


def fresh_turns(tokens: TokenSequence, update: int, max_staleness: int) -> tuple[TokenSequence, Staleness]:
    """``tokens`` with only those turns in the mask whose staleness at ``update`` is at most ``max_staleness``.

    Turns whose version is not known (-1: no engine sampled them) stay.
    """
    sampled = tokens.mask & (tokens.versions >= 0)
    if not sampled.any():
        return tokens, Staleness()
    turns, turn_of_token = np.unique(tokens.turns[sampled], return_inverse=True)
    oldest = np.full(len(turns), np.iinfo(np.int32).max, np.int32)
    np.minimum.at(oldest, turn_of_token, tokens.versions[sampled])
    stale = update - oldest > max_staleness
    staleness = Staleness(len(turns), int((update - oldest).sum()), int((update - oldest).max()), int(stale.sum()))
    if not stale.any():
        return tokens, staleness
    return tokens.with_mask(tokens.mask & ~np.isin(tokens.turns, turns[stale])), staleness
