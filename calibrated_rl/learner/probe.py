"""Checks on a few tokens, when a model of a new kind is loaded, that the learner computes what transformers does.

A model can do anything with its config: multiply hidden states or logits, ask for a mask, add a bias. The learner
uses transformers' code in pieces (the decoder, the head) and with attention of its own, so it would omit a step in
between without an error. Two short sequences that begin alike are computed both ways: by transformers, one
by one, and by the learner, packed. The model is refused if they differ by more than rounding.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner.attention import layout_of
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.packing import pack

LENGTHS = (13, 9)
"""Tokens of the two sequences; the first ``SHARED`` are the same."""
SHARED = 5
TOLERANCES = {torch.float32: 1e-3}
"""Mean difference in nats a token. Seen in float32: 1e-5 and less; a constant of the config that is left out: 0.1 and
more."""
ROUNDED = 0.25
"""In a dtype of 16 bits, where rounding alone gives 0.06 in a model of 30 layers."""

_compared: set[str] = set()
"""Configs and dtypes that were compared in this process, since arms load the same models repeatedly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Log-probs as transformers computes them, to be compared with the learner's."""

    key: str
    sequences: list[TokenSequence]
    expected: list[NDArray[np.float32]]
    """[T - 1] a sequence."""

    @classmethod
    def of(cls, model: Any) -> "Probe | None":
        """The outputs of ``model`` while it is still transformers' own; None if such a model was compared before."""
        dtype, device = model.dtype, next(model.parameters()).device
        key = json.dumps([str(dtype), model.config.to_dict()], sort_keys=True, default=str)
        if key in _compared:
            return None
        random = np.random.default_rng(0)
        words = model.config.get_text_config().vocab_size
        ids = random.integers(0, words, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
        ids[:, :SHARED] = ids[0, :SHARED]
        sequences = [TokenSequence.unsampled(row[:length]) for row, length in zip(ids, LENGTHS, strict=True)]
        was_training = model.training
        model.eval()
        expected = [_one_by_one(model, torch.from_numpy(sequence.ids).long().to(device)) for sequence in sequences]
        model.train(was_training)
        return cls(key=key, sequences=sequences, expected=expected)

    def compare(self, module: nn.Module) -> None:
        """Compare with ``module``, the ``TokenLogProbs`` of the same model.

        Raises:
            UserError: they differ by more than rounding.
        """
        model: Any = module.model
        device = next(model.parameters()).device
        batch = SampleBatch.of_sequences(self.sequences)
        (packed,) = pack(batch, sum(LENGTHS))
        arrays = packed.input_ids, packed.position_ids, packed.select, packed.targets
        with torch.no_grad():
            logprobs, _ = module.log_probs(  # type: ignore[operator]
                *(torch.from_numpy(array).to(device) for array in arrays), layout_of(packed, device, model.dtype)
            )
        logprobs_flat = np.full(len(batch.ids), np.nan, np.float32)
        logprobs_flat[packed.source] = logprobs.float().cpu().numpy()
        pairs = zip(batch.split(logprobs_flat), self.expected, strict=True)
        difference = float(
            np.mean(
                np.abs(
                    np.concatenate(
                        [learner_logprobs[1:] - reference_logprobs for learner_logprobs, reference_logprobs in pairs]
                    )
                )
            )
        )
        tolerance = TOLERANCES.get(model.dtype, ROUNDED)
        if not difference <= tolerance:  # NaN is refused, too
            raise UserError(
                f"models of type {model.config.model_type} are not supported as this one is configured: the learner's "
                f"log-probs differ from those of transformers by {difference:.2g} nats a token, and up to "
                f"{tolerance:g} is rounding. Something in its config.json is not supported here"
            )
        _compared.add(self.key)


def _one_by_one(model: Any, ids_T: Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        logs_TV = model(input_ids=ids_T[None], use_cache=False).logits[0].float().log_softmax(-1)
    logprobs: NDArray[np.float32] = logs_TV[:-1].gather(-1, ids_T[1:, None])[:, 0].cpu().numpy()
    return logprobs
