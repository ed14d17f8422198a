"""One rank of the learner: hosts named models, trains and scores them. ``group.py`` puts it in Ray.

Every method is called on all ranks with the same arguments. Each packs the whole batch, in the same way, and
computes its share of the micro-batches.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.checkpoint import Snapshot, read, take
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.device_memory import DeviceMemory, measure_device
from calibrated_rl.learner.hosted import HostedModel
from calibrated_rl.learner.losses.base import Loss, Totals
from calibrated_rl.learner.losses.check import LossSpec, resolve_loss
from calibrated_rl.learner.losses.checked import output_of
from calibrated_rl.learner.metrics import Sums, collect
from calibrated_rl.learner.micro_batch import (
    MIN_MICRO_BATCH_TOKENS,
    check_samples,
    check_temperature,
    full_micro_batch,
    loss_inputs,
    sampler_logprobs,
    sequences_to_blame,
)
from calibrated_rl.learner.not_finite import SkippedStep
from calibrated_rl.learner.out_of_memory import OutOfMemory
from calibrated_rl.learner.packing import EMPTY, PackedBatch, pack
from calibrated_rl.learner.world import LOCALHOST, World, free_port
from calibrated_rl.weight_sync.base import Transport
from calibrated_rl.weight_sync.lora import LoRAWeights, lora_weights
from calibrated_rl.weight_sync.object_store import full_weights
from calibrated_rl.weight_sync.shared_memory import SharedMemories, SharedWeights
from calibrated_rl.weight_sync.tensors import Weights

logger = logging.getLogger(__name__)


class LearnerRank:
    """Hosts several models at once, each under its name."""

    def __init__(self, config: LearnerConfig, rank: int = 0, address: str = LOCALHOST, port: int | None = None) -> None:
        self.config = config
        self.world = World(rank, config.ranks, address, port or free_port(), config.threads)
        self.models: dict[str, HostedModel] = {}
        self.micro_batch_tokens = config.micro_batch_tokens
        """Halved where memory runs out."""
        self._skipped: list[SkippedStep] = []
        """Of the last call to ``step``."""
        self._shared = SharedMemories(config.dtype, self.world.device, rank)

    def load(
        self,
        name: str,
        path: str | Path,
        *,
        trainable: bool = True,
        optimizer: OptimizerConfig | None = None,
        seed: int = 0,
        full_finetuning: bool = False,
        adapters: Path | None = None,
        base: str = "",
        value_head: bool = False,
    ) -> None:
        """Load the model in folder ``path`` under ``name``, in place of the weights and optimizer of that name.

        Args:
            full_finetuning: train all weights, though ``config.lora`` may name the model.
            adapters: file of a checkpoint; None: if the model is trained by adapters, they are initialised.
            base: name of the base in the saved adapters; empty: ``path``.
            value_head: it predicts values, see ``value_head.py``.
        """
        if name in self.models:
            self.models.pop(name).close()
        self.world.seed(seed)
        settings = (optimizer or OptimizerConfig()) if trainable else None
        self.models[name] = HostedModel(
            Path(path),
            config=self.config,
            world=self.world,
            optimizer=settings,
            seed=seed,
            lora=self.config.adapters_of(name) if trainable and not full_finetuning else None,
            adapters=adapters,
            base=base or str(Path(path).resolve()),
            value_head=value_head,
        )

    def unload(self, name: str) -> None:
        self._model(name)
        self.models.pop(name).close()

    def check(self, name: str) -> bool:
        """Whether ``name`` is trained by adapters; refuses a name that is not loaded."""
        return self._model(name).lora is not None

    def _model(self, name: str) -> HostedModel:
        if name not in self.models:
            raise UserError(f"the learner has no model '{name}'; loaded: {', '.join(sorted(self.models)) or 'none'}")
        return self.models[name]

    def step(
        self,
        name: str,
        batch: SampleBatch,
        loss: LossSpec,
        *,
        temperature: float = 1.0,
        minibatches: int = 1,
        epochs: int = 1,
        learning_rate: float | None = None,
    ) -> dict[str, float]:
        """Take ``minibatches * epochs`` optimizer steps and return metrics, the same on all ranks. A step that is
        not finite is skipped: ``skipped`` returns those."""
        model, loss = self._model(name), resolve_loss(loss)
        assert model.trainable, f"'{name}' was loaded with trainable=False"
        check_temperature(temperature)
        check_samples(batch, loss, value_head=model.has_value_head)
        self._skipped = []
        broken = batch.not_finite()
        sums, scored, old_logprobs = Sums(), batch.scored, None
        rejects = loss.correction is not None and loss.correction.rejects
        if rejects or (loss.policy_gradient and minibatches * epochs > 1):
            old_logprobs = self._score(model, batch, temperature)[0]
            broken_sequences = np.unique(batch.sequence_of[batch.scored & ~np.isfinite(old_logprobs)]).tolist()
            broken = dict.fromkeys(broken_sequences, "log-probs before the update") | broken
        if rejects:
            assert old_logprobs is not None and loss.correction is not None
            accepted = loss.correction.accepted(
                torch.from_numpy(old_logprobs), torch.from_numpy(sampler_logprobs(batch, old_logprobs))
            )
            scored = scored & accepted.numpy()
        n_scored, n_accepted = int(batch.scored.sum()), int(scored.sum())
        steps_taken = 0
        for indices in self._minibatches(model, batch, loss.unit, minibatches, epochs):
            if blamed := [index for index in indices.tolist() if index in broken]:
                self._skip(" and ".join(sorted({broken[index] for index in blamed})), blamed, indices)
                continue
            accumulate = partial(self._accumulate, model, batch, loss, indices, scored, old_logprobs, temperature)
            steps_taken += self._optimizer_step(model, accumulate, learning_rate, sums, indices)
        results = self._join(sums).results()
        results |= {
            "optimizer_steps": float(steps_taken),
            "tokens": float(n_accepted),
            "skipped_steps": float(len(self._skipped)),
        }
        results["micro_batch_tokens"] = float(self.micro_batch_tokens)
        results["masked_share"] = (n_scored - n_accepted) / n_scored if n_scored else 0.0
        return results

    def skipped(self) -> list[SkippedStep]:
        """Optimizer steps of the last call to ``step`` that were skipped."""
        return self._skipped

    def _skip(self, reason: str, blamed: Sequence[int], indices: NDArray[np.int64]) -> None:
        self._skipped.append(SkippedStep(reason=reason, sequences=tuple(blamed), step=tuple(indices.tolist())))

    @staticmethod
    def _minibatches(
        model: HostedModel, batch: SampleBatch, unit: int, minibatches: int, epochs: int
    ) -> Iterator[NDArray[np.int64]]:
        """Indices of the sequences of each optimizer step; shuffled by unit where there are several."""
        units = np.arange(len(batch.advantages)).reshape(-1, unit)
        for _ in range(epochs):
            order = units if minibatches == 1 else units[model.order.permutation(len(units))]
            yield from (
                minibatch_units.reshape(-1)
                for minibatch_units in np.array_split(order, minibatches)
                if len(minibatch_units)
            )

    def _optimizer_step(
        self,
        model: HostedModel,
        accumulate: Callable[[Sums, list[int]], bool],
        learning_rate: float | None,
        sums: Sums,
        indices: NDArray[np.int64],
    ) -> int:
        """One optimizer step over the sequences ``indices``, along the gradient that ``accumulate`` adds up; returns 1,
        or 0 if there is none or it is not finite. Where memory runs out before the weights change, the step is retried
        with smaller micro-batches."""
        accumulated = None
        while accumulated is None:
            step_sums, broken = Sums(), list[int]()
            with OutOfMemory() as memory:
                accumulated = accumulate(step_sums, broken)
            if accumulated is None:
                self._shrink(memory.message)
                model.drop_gradients()
        if not accumulated:
            return 0
        applied = None
        with OutOfMemory() as memory:
            applied = model.update(learning_rate)
        if memory.message:  # some weights have changed, so that it cannot be retried
            raise UserError(
                f"the learner ran out of memory in the optimizer ({memory.message}): leave more memory to it"
            )
        if applied is None:  # on all ranks alike: the norm is that of the gradient over all ranks
            blamed = sorted({index for rank_broken in self.world.gather(broken) for index in rank_broken})
            self._skip("the loss" if blamed else "the gradient", blamed or indices.tolist(), indices)
            return 0
        sums.add(step_sums)
        norm, rate = applied
        # Every rank reports the same norm and rate; the loss is a sum over ranks, counted once a step.
        count = 1.0 / self.world.size
        shared = {"loss": 0.0, "grad_norm": norm, "learning_rate": rate}
        sums.add(Sums(means={key: (value * count, count) for key, value in shared.items()}))
        return 1

    def _shrink(self, message: str) -> None:
        """Halve the micro-batches.

        Raises:
            UserError: they are small already, or other ranks would wait for this one.
        """
        config, tokens = self.config, self.micro_batch_tokens
        if self.world.size > 1 or config.zero_stage or tokens < 2 * MIN_MICRO_BATCH_TOKENS:
            raise UserError(
                f"the learner ran out of memory with micro-batches of {tokens} tokens ({message}): lower "
                "learner.micro_batch_tokens, set learner.gradient_checkpointing, or leave more memory to it"
            )
        self.micro_batch_tokens = tokens // 2
        logger.warning(f"out of memory ({message}): micro-batches of {self.micro_batch_tokens} tokens from now on")

    def _accumulate(
        self,
        model: HostedModel,
        batch: SampleBatch,
        loss: Loss,
        indices: NDArray[np.int64],
        scored: NDArray[np.bool_],
        old_logprobs: NDArray[np.float32] | None,
        temperature: float,
        sums: Sums,
        broken: list[int],
    ) -> bool:
        """Accumulate the gradient of a step over the sequences ``indices``; False if nothing in them is scored.

        Where a loss is not finite, the gradient is made NaN, whatever the loss's own would be: so no rank takes the
        step, whichever has noticed. ``broken`` gets the sequences with such a loss.
        """
        packs = pack(
            batch, self.micro_batch_tokens,
            ranks=self.world.size, unit=loss.unit, indices_to_pack=indices, scored=scored,
        )  # fmt: skip
        if not packs:
            return False
        all_sources = np.concatenate([p.source for p in packs])
        totals = Totals(
            tokens=len(all_sources),
            sequences=len(np.unique(np.concatenate([p.sequence for p in packs]))),
            weight=float(batch.token_weights[all_sources].sum(dtype=np.float64)),
        )
        shares = list(self._shares(packs))
        for index, packed in enumerate(shares):
            scores = model(packed, temperature=temperature, entropy_gradient=loss.entropy_gradient)
            if len(packed.source):
                inputs = loss_inputs(batch, packed, scores, old_logprobs, totals, reads_values=loss.reads_values)
                output = output_of(loss, inputs)
                batch_metrics = collect(inputs, output, loss)
                sums.add(batch_metrics)
                value = output.loss
                if not math.isfinite(batch_metrics.means["loss"][0]):
                    broken += sequences_to_blame(packed, inputs)
                    value = (scores[0].sum() + scores[1].sum()) * math.nan
            else:
                # Both outputs, as in the losses: under ZeRO-3 an unused one changes what is gathered when.
                value = (scores[0].sum() + scores[1].sum()) * 0.0
            model.backward(value, last=index == len(shares) - 1)
        return True

    def _shares(self, packs: list[PackedBatch]) -> Iterator[PackedBatch]:
        """This rank's micro-batches, as many as each other rank has: rank ``r`` takes ``r, r + R, ...``."""
        size, rank = self.world.size, self.world.rank
        for first in range(0, len(packs), size):
            round_packs = packs[first : first + size]
            yield round_packs[rank] if rank < len(round_packs) else EMPTY

    def _join(self, sums: Sums) -> Sums:
        total = Sums()
        for rank_sums in self.world.gather(sums):
            total.add(rank_sums)
        return total

    def _score(
        self, model: HostedModel, batch: SampleBatch, temperature: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        check_temperature(temperature)
        while True:
            with OutOfMemory() as memory:
                return self._try_score(model, batch, temperature)
            self._shrink(memory.message)

    def _try_score(
        self, model: HostedModel, batch: SampleBatch, temperature: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        packs = pack(batch, self.micro_batch_tokens, ranks=self.world.size)
        scores_2L = torch.zeros(2, len(batch.ids), dtype=torch.float32, device=self.world.device)
        with torch.no_grad():
            for packed in self._shares(packs):
                scores = model(packed, temperature=temperature)
                if len(packed.source):
                    scores_2L[:, torch.from_numpy(packed.source).to(self.world.device)] = torch.stack(scores)
        values = self.world.sum_array(scores_2L).cpu().numpy()
        values[:, ~batch.scored] = np.nan
        return values[0], values[1]

    def measure_peak_memory(self, lengths: Mapping[str, int]) -> DeviceMemory:
        """Take a step with each of the models that changes no weights, on full micro-batches of sequences of so many
        tokens, of which nothing is shared; returns the device's memory at the peak."""
        random, loss = np.random.default_rng(0), resolve_loss("calibrated_rl.learner.losses.sft:SFT")
        for name, length in lengths.items():
            # Sums of gradients take memory as soon as there are two.
            tokens = self.micro_batch_tokens * (1 if self._model(name).sums is None else 2)
            batch = full_micro_batch(tokens, length, self._model(name).vocabulary, random)
            self.step(name, batch, loss, learning_rate=0.0)
        return measure_device(self.world.cuda)

    def score(
        self, name: str, batch: SampleBatch, temperature: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log-probs and entropies in nats, both [L], NaN where not scored; the same on all ranks. Of a model with a
        value head its values, and zeros."""
        return self._score(self._model(name), batch, temperature)

    def weights(self, name: str) -> dict[str, Tensor]:
        """Full weights on rank 0; see ``HostedModel.weights``."""
        return self._model(name).weights()

    def prepare_update(self, name: str) -> Transport:
        """How the weights of ``name`` travel to engines; makes the memory that this takes.

        Raises:
            UserError: there is not enough.
        """
        model = self._model(name)
        if model.lora is not None:
            return Transport.LORA
        if not (self.config.share_weights and model.trainable):
            return Transport.OBJECT_STORE
        self._shared.make(name, model)
        return Transport.SHARED_MEMORY

    def full_weights(self, name: str) -> Weights:
        """See ``object_store.full_weights``."""
        return full_weights(self._model(name))

    def shared_weights(self, name: str) -> SharedWeights | None:
        """Write the weights of ``name`` to the memory that ``prepare_update`` has made; they stay there until two
        further calls."""
        return self._shared.write(name, self._model(name))

    def lora_weights(self, name: str) -> LoRAWeights:
        """See ``lora.lora_weights``."""
        return lora_weights(self._model(name))

    def merge_error(self, name: str) -> dict[str, float]:
        """See ``HostedModel.merge_error``."""
        return self._model(name).merge_error()

    def save(self, name: str, folder: str | Path) -> None:
        """Write ``name`` in Hugging Face format."""
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        self._model(name).save(Path(folder))

    def snapshot(self, names: Sequence[str] = ()) -> Snapshot | None:
        """Weights, optimizer and random state of the trainable models in ``names`` (empty: of all), copied; on
        rank 0."""
        models = {name: self._model(name) for name in names} or self.models
        return take(models, self.world, self.config)

    def restore(self, folder: str | Path) -> None:
        """Replace all trainable models by those of a checkpoint.

        Raises:
            UserError: the folder is not a whole checkpoint, was altered, or is of another format or dtype.
        """
        read(self.load, self.models, self.world, self.config, Path(folder))
