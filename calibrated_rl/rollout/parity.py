"""Checks on a few real dialogues, when a run starts, that learner and engine compute the same policy.

Importance weights, advantages and KL all compare log-probs of the engine with those of the learner. Both read the same
files with independent code; where they interpret a setting differently, nothing fails and everything is wrong. So, once
both have the weights that training begins with (adapters included, and after a resume those of the checkpoint), each
scores the same logged dialogues, and a run whose log-probs differ by more than rounding is stopped.

Nothing is sampled, and the engine caches these prompts apart from others: the run's digits stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError

DIALOGUES = 4
"""Number of logs to compare: the longest, where windows and scaled positions matter, and the first ones."""
FLOAT32, BFLOAT16 = "float32", "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """In nats a token."""

    mean: float
    max: float


TOLERANCES = {
    FLOAT32: Tolerance(mean=3e-4, max=1e-2),
    BFLOAT16: Tolerance(mean=0.2, max=4.0),
}
"""By the coarser of both dtypes. Seen (mean, max): float32 2e-7, 1e-6 in the tiny model and 9e-6, 1.5e-4 in one of
135 M parameters; bfloat16 0.06, 0.31 there. The faults that this is for gave means of 0.8 and more."""


class Learner(Protocol):
    """The part of the learner that the check uses."""

    def log_probs(
        self, name: str, sequences: Sequence[TokenSequence], temperature: float = 1.0
    ) -> list[NDArray[np.float32]]: ...


class Engine(Protocol):
    """The part of a pool of replicas that the check uses."""

    role: str
    max_model_len: int

    def score(self, ids: list[int]) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Absolute differences of log-probs, in nats, over ``tokens`` tokens."""

    mean: float
    max: float
    tokens: int

    @classmethod
    def of(cls, learner: Sequence[NDArray[np.float32]], engine: Sequence[NDArray[np.float32]]) -> "Parity":
        """Of log-probs of the same tokens, [T - 1] a sequence."""
        differences = np.abs(np.concatenate(list(learner)) - np.concatenate(list(engine)))
        return cls(mean=float(differences.mean()), max=float(differences.max()), tokens=len(differences))

    def within(self, tolerance: Tolerance) -> bool:
        """False, too, where a value is NaN."""
        return self.mean <= tolerance.mean and self.max <= tolerance.max


def select_for_parity(views: Sequence[TokenSequence], longest: int) -> list[TokenSequence]:
    """Dialogues to compare, all tokens of them scored: of those that the engine can take, the longest and the first."""
    fit = [view for view in views if 2 <= len(view.ids) < longest]  # the engine always samples one more token
    if not fit:
        return []
    longest_index = max(range(len(fit)), key=lambda i: len(fit[i].ids))
    indices = sorted({longest_index, *range(min(DIALOGUES - 1, len(fit)))})
    return [replace(fit[i], mask=np.ones_like(fit[i].mask)) for i in indices]


def check_parity(
    learner: Learner, engine: Engine, views: Sequence[TokenSequence], *, model: str, dtypes: Sequence[str]
) -> Parity | None:
    """Let both score some of ``views``; None if there is none that the engine can take.

    Args:
        views: logged dialogues as token ids of the side that the model speaks for.
        model: its name in messages.
        dtypes: of learner and engine.

    Raises:
        UserError: the log-probs differ by more than rounding does.
    """
    sequences = select_for_parity(views, engine.max_model_len)
    if not sequences:
        return None
    parity = Parity.of(
        [values[1:] for values in learner.log_probs(engine.role, sequences)],
        [engine.score(sequence.ids.tolist()) for sequence in sequences],
    )
    tolerance = TOLERANCES[BFLOAT16 if BFLOAT16 in dtypes else FLOAT32]
    if not parity.within(tolerance):
        raise UserError(
            f"{engine.role}: learner and engine do not compute the same log-probs of '{model}': over {parity.tokens} "
            f"tokens of logged dialogues they differ by {parity.mean:.2g} nats on average and {parity.max:.2g} at most "
            f"({' and '.join(dtypes)}: up to {tolerance.mean:g} and {tolerance.max:g} is rounding). Training would "
            "learn from the difference. Likely causes: a setting in the model's config.json that vLLM and transformers "
            "take differently (rotary scaling, windows, multipliers), or weights that did not arrive; take a model in "
            "its original form, or another"
        )
    return parity
