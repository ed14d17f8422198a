"""The contract of a loss: its inputs and outputs.

A loss is a pure function of flat tensors over the scored tokens of one micro-batch. Already decided when it
is called, and never decided again inside it:

- which tokens count: rejected and unscored ones are not among the ``N``, and no denominator counts them;
- the temperature: all log-probs are those of the distribution that was sampled from;
- the normalisers: they are totals over the whole optimizer step, all micro-batches and ranks. A loss divides
  by them and by nothing that depends on the micro-batch, so losses of micro-batches simply add up;
- that a sequence (and for losses with ``unit = 2`` a pair) is never split over micro-batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibrated_rl.learner.losses.correction import Correction


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Normalisers: totals over one optimizer step."""

    tokens: int
    """Scored tokens, rejected ones not counted."""
    sequences: int
    """Sequences with at least one scored token."""
    weight: float
    """Sum of the token weights over the scored tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The ``N`` scored tokens of ``S`` whole sequences, the tokens of one sequence in order and together."""

    logprobs: Tensor
    """[N] under the learner now; carries gradient."""
    entropy: Tensor
    """[N] of the next-token distribution; carries gradient only if the loss has ``entropy_gradient``."""
    old_logprobs: Tensor
    """[N] under the learner before the update."""
    sampler_logprobs: Tensor
    """[N] under the engine that sampled; equal to ``old_logprobs`` where nothing was sampled (logs)."""
    reference_logprobs: Tensor | None
    """[N] under the frozen reference."""
    advantages: Tensor
    """[N] of the token's dialogue, or of its turn."""
    weights: Tensor
    """[N] weights for likelihood losses."""
    sequence: Tensor
    """[N] index of the sequence within the micro-batch, 0 to S − 1, not decreasing."""
    count: int
    """S"""
    totals: Totals
    values: Tensor | None = None
    """[N] what the value head predicts before each scored token; carries gradient. Of losses with ``reads_values``
    alone, whose log-probs and entropies are zeros."""
    targets: Tensor | None = None
    """[N] what it is to predict."""

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum ``values`` [N] over the tokens of each sequence: [S]."""
        return torch.zeros(self.count, dtype=values.dtype, device=values.device).index_add(0, self.sequence, values)

    def sequence_lengths(self) -> Tensor:
        """Scored tokens of each sequence, [S], at least 1."""
        return self.per_sequence(torch.ones_like(self.advantages))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """The micro-batch's share of the loss, and what to log."""

    loss: Tensor
    """Scalar. The losses of all micro-batches and ranks sum up to the loss of the step."""
    means: dict[str, tuple[Tensor, Tensor | float]] = field(default_factory=dict)
    """Name → (sum, count). Both are added over micro-batches and ranks before dividing."""
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Name → largest value."""


class Loss(ABC):
    """Base of all losses: what the learner must prepare for it."""

    unit: int = 1
    """Number of consecutive samples that belong together (2: pairs of chosen and rejected)."""
    needs_reference: bool = False
    """Whether the samples must carry log-probs under a reference."""
    policy_gradient: bool = True
    """Whether ``old_logprobs`` and ``sampler_logprobs`` are used and their metrics logged."""
    entropy_gradient: bool = False
    """Whether entropies carry gradient."""
    reads_weights: bool = False
    """Whether the weights of samples and tokens are used; samples with weights are refused by the others."""
    reads_values: bool = False
    """Whether it trains a value head, which has no log-probs."""
    turn_credit: bool = True
    """Whether tokens of the same sequence may have different advantages, as with credit by turn."""
    advantages: tuple[str, ...] = ()
    """Short names of the ``advantages`` that the loss is defined with; none: any."""
    correction: Correction | None = None
    """How the step from sampling engine to learner is corrected."""

    def without_effect(self, settings: Mapping[str, Any], steps: int) -> list[str]:
        """The reasons why entries of ``settings``, as written in a config, have no effect: one a setting.

        Args:
            steps: optimizer steps that are taken with the log-probs of one scoring.
        """
        return []

    @abstractmethod
    def __call__(self, inputs: LossInputs) -> LossOutput:
        """The loss of one micro-batch."""
