"""Between a batch and the loss of one of its micro-batches: what the loss is given, and which sequences it blames."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.losses.base import Loss, LossInputs, Totals
from calibrated_rl.learner.packing import PackedBatch

MIN_MICRO_BATCH_TOKENS = 256
"""Micro-batches are not made smaller than this."""


def loss_inputs(
    batch: SampleBatch,
    packed: PackedBatch,
    scores: tuple[Tensor, Tensor],
    old_logprobs_all: NDArray[np.float32] | None,
    totals: Totals,
    *,
    reads_values: bool = False,
) -> LossInputs:
    """What the loss of the micro-batch ``packed`` of ``batch`` reads, on the device of ``scores``.

    Args:
        scores: log-probs [N] and entropies [N]; with ``reads_values`` values [N] and zeros [N].
        old_logprobs_all: of the whole batch, [L], under the weights before its first step; None: those are the present
            ones.
        totals: of the whole step, over all ranks.
    """

    values, (logprobs, entropy) = None, scores
    if reads_values:
        values, logprobs = scores[0], entropy

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(logprobs.device)

    old_logprobs = logprobs.detach() if old_logprobs_all is None else tensor(old_logprobs_all[packed.source])
    sampler = tensor(batch.sampler_logprobs[packed.source])
    changes = np.diff(packed.sequence, prepend=packed.sequence[:1]) != 0
    reference = batch.reference_logprobs
    return LossInputs(
        logprobs=logprobs,
        entropy=entropy,
        old_logprobs=old_logprobs,
        sampler_logprobs=torch.where(sampler.isnan(), old_logprobs, sampler),
        reference_logprobs=None if reference is None else tensor(reference[packed.source]),
        advantages=tensor(
            batch.advantages[packed.sequence]
            if batch.token_advantages is None
            else batch.token_advantages[packed.source]
        ),
        weights=tensor(batch.token_weights[packed.source]),
        sequence=tensor(np.cumsum(changes)),
        count=int(changes.sum()) + 1,
        totals=totals,
        values=values,
        targets=None if batch.targets is None else tensor(batch.targets[packed.source]),
    )


def sampler_logprobs(batch: SampleBatch, old_logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probs [L] under the engine that sampled each token; ``old_logprobs`` where none did."""
    return np.where(np.isnan(batch.sampler_logprobs), old_logprobs, batch.sampler_logprobs)


def sequences_to_blame(packed: PackedBatch, inputs: LossInputs) -> list[int]:
    """Sequences of the batch with a log-prob or value that is not finite; if there is none, all of the micro-batch."""
    scores = inputs.logprobs if inputs.values is None else inputs.values
    fine = torch.isfinite(scores.detach() + inputs.old_logprobs + inputs.sampler_logprobs).cpu().numpy()
    return np.unique(packed.sequence[~fine] if not fine.all() else packed.sequence).tolist()  # type: ignore[no-any-return]


def check_samples(batch: SampleBatch, loss: Loss, *, value_head: bool) -> None:
    """
    Args:
        value_head: whether the model has one.

    Raises:
        UserError: the loss does not go with the samples, or with the model.
    """
    name = type(loss).__name__
    if loss.reads_values != value_head:
        raise UserError(
            f"the loss {name} trains {'models with a value head' if loss.reads_values else 'log-probs'}, and the model "
            f"has {'a value head' if value_head else 'none'}"
        )
    if loss.reads_values and batch.targets is None:
        raise UserError(f"the loss {name} needs samples with targets")
    if loss.needs_reference and batch.reference_logprobs is None:
        raise UserError(f"the loss {name} needs samples with reference_logprobs")
    if batch.weighted and not loss.reads_weights:
        raise UserError(f"the loss {name} does not use the weights of samples, and some have them")
    if loss.unit == 1:
        return
    counts = np.bincount(batch.sequence_of[batch.scored], minlength=len(batch.lengths))
    if len(counts) % loss.unit or (counts == 0).any():
        raise UserError(f"this loss takes samples in units of {loss.unit}, each with at least one scored token")


def full_micro_batch(tokens: int, length: int, words: int, random: np.random.Generator) -> SampleBatch:
    """Sequences of ``length`` tokens, and a shorter one for the rest: together a micro-batch of ``tokens``; a single
    sequence if that has more."""
    lengths = [length] * max(1, tokens // (length - 1))  # the last token of each is predicted, not read
    remaining = tokens - (length - 1) * len(lengths)
    lengths += [remaining + 1] if remaining > 0 else []
    sequences = [random.integers(0, words, sequence_length).astype(np.int32) for sequence_length in lengths]
    return SampleBatch.of_sequences([TokenSequence.unsampled(ids) for ids in sequences])


def check_temperature(temperature: float) -> None:
    """
    Raises:
        UserError: the learner cannot score at ``temperature``.
    """
    if not 0 < temperature < math.inf:
        raise UserError(f"the learner cannot score at temperature {temperature}: it must be above 0")
