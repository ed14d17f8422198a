"""The driver's interface to the learner: Ray actors, one a rank, called together; a thin shell of ``LearnerRank``."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import PartLost, UserError, first_line
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.device_memory import DeviceMemory
from calibrated_rl.learner.losses.base import Loss
from calibrated_rl.learner.losses.check import LossSpec, located
from calibrated_rl.learner.not_finite import describe, keep_data
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.rank_actor import FILES, LoadOptions, RankActor, rank_options
from calibrated_rl.learner.rank_handle import RankHandle
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.world import LOCALHOST
from calibrated_rl.runtime.actor_call import ActorCall, results
from calibrated_rl.runtime.capacity import Need, answered
from calibrated_rl.runtime.node_folder import NodeFolder
from calibrated_rl.weight_sync.base import ObjectRef, Transport, WeightUpdate
from calibrated_rl.weight_sync.lora import LoRABases, LoRAUpdate
from calibrated_rl.weight_sync.object_store import FullUpdate
from calibrated_rl.weight_sync.shared_memory import SharedUpdate

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def _name_of(loss: LossSpec) -> str:
    return loss if isinstance(loss, str) else type(loss).__name__ if isinstance(loss, Loss) else loss[0]


class LearnerGroup:
    """Starts the ranks and calls them together; each call returns when all are done.

    Raises (every method):
        UserError: what a rank refused, in its words.
        PartLost: a rank died, or did not answer within ``config.timeout_seconds``. The group is then unusable.
    """

    def __init__(
        self,
        config: LearnerConfig,
        wait_for_machines: Callable[[Sequence[Need]], None] = lambda needs: None,
        skipped_data_folder: Path | None = None,
    ) -> None:
        """
        Args:
            wait_for_machines: returns when the ranks have what they need of the cluster; the time-outs begin then.
            skipped_data_folder: folder for the data of optimizer steps that were not taken; None: they are not kept.
        """
        self.config, self._skipped_data_folder = config, skipped_data_folder
        self.skipped_steps = 0
        """Optimizer steps that were not taken, because something was not finite."""
        self.micro_batch_tokens = float(config.micro_batch_tokens)
        """Less than the settings say, once memory has run out."""
        self._lora_bases = LoRABases()
        options = rank_options(config, ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(concurrency_groups={FILES: 1})(RankActor).options(**options)
        self._ranks = [RankHandle(actor.remote(config)) for _ in range(config.ranks)]
        with ExitStack() as unless_all_join:
            unless_all_join.callback(self.close)
            addresses = [rank.address() for rank in self._ranks]
            resources = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
            wait_for_machines(
                [
                    Need("learner rank", "learner", resources, config.labels, answered(pending_address.reference))
                    for pending_address in addresses
                ]
            )
            addresses_and_ports = self._wait(addresses)
            address, port = addresses_and_ports[0]
            if all(endpoint[0] == address for endpoint in addresses_and_ports):
                address = LOCALHOST
            self._wait([rank.join(number, address, port) for number, rank in enumerate(self._ranks)])
            unless_all_join.pop_all()

    def _wait(self, calls: Sequence[ActorCall[UserError | T]]) -> list[T]:
        """Results of all ``calls``; the first failure ends the wait, since the other ranks may hang in it."""
        pending, deadline = [call.reference for call in calls], time.monotonic() + self.config.timeout_seconds
        while pending:
            remaining_s = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=remaining_s)
            if not done:
                raise PartLost(f"{len(pending)} learner ranks did not answer within {self.config.timeout_seconds} s")
            try:
                (result,) = ray.get(done, timeout=60)
            except RayActorError as error:
                raise PartLost(f"a learner rank is gone: {first_line(error)}") from error
            if isinstance(result, UserError):
                raise result
        return [result for result in results(calls, 60) if not isinstance(result, UserError)]

    def _call(self, method: Callable[Concatenate[LearnerRank, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """Call ``method`` on all ranks; the first one's result."""
        return self._wait([rank.call(method, *arguments, **options) for rank in self._ranks])[0]

    def load(self, name: str, path: str | Path, **options: Unpack[LoadOptions]) -> None:
        """Load the model in folder ``path`` under ``name``, in place of the weights and optimizer of that name."""
        self._lora_bases.forget(name)
        logger.debug(f"the learner loads '{name}' from {path}")
        folder = NodeFolder.here(path)
        self._wait([rank.load(name, folder, **options) for rank in self._ranks])

    def unload(self, name: str) -> None:
        """Free the memory of ``name``."""
        self._lora_bases.forget(name)
        self._call(LearnerRank.unload, name)

    def step(
        self,
        name: str,
        samples: Sequence[Sample],
        loss: LossSpec,
        *,
        temperature: float = 1.0,
        minibatches: int = 1,
        epochs: int = 1,
        learning_rate: float | None = None,
    ) -> dict[str, float]:
        """Take ``minibatches * epochs`` optimizer steps over ``samples`` and return metrics.

        Args:
            loss: a loss component, its import path, or ``(import path, config)``.
            temperature: that at which the samples were drawn.
            minibatches: each epoch is cut into so many optimizer steps, shuffled if more than one.
            learning_rate: replaces the optimizer's; the warm-up still applies.

        Raises:
            UserError: more steps than ``config.max_skipped_steps`` were not taken, since the group began, because
                something was not finite.
        """
        if not samples:
            raise UserError(f"learner: no samples to train '{name}' on")
        batch = ray.put(SampleBatch.of(samples))
        metrics = self._call(
            LearnerRank.step, name, batch, located(loss),
            temperature=temperature, minibatches=minibatches, epochs=epochs, learning_rate=learning_rate,
        )  # fmt: skip
        if (micro_batch_tokens := metrics["micro_batch_tokens"]) < self.micro_batch_tokens:
            self.micro_batch_tokens = micro_batch_tokens
            logger.warning(
                f"the learner ran out of memory and continues with micro-batches of {micro_batch_tokens:.0f} tokens"
            )
        if self.config.dtype != "float32" and name in self.config.lora:
            metrics |= self._call(LearnerRank.merge_error, name)
        if metrics["skipped_steps"]:
            self._record_skipped(name, samples, {"loss": _name_of(loss), "temperature": temperature})
        return metrics

    def _record_skipped(self, name: str, samples: Sequence[Sample], details: dict[str, Any]) -> None:
        limit = self.config.max_skipped_steps
        skipped = self._call(LearnerRank.skipped)
        for step in skipped:
            self.skipped_steps += 1
            message = f"an optimizer step of '{name}' was not taken: {describe(step, samples)}"
            if self._skipped_data_folder is not None:
                try:
                    message += (
                        f"; its data: {keep_data(self._skipped_data_folder, step, samples, {'model': name} | details)}"
                    )
                except OSError as error:
                    message += f"; its data could not be kept ({error})"
            if self.skipped_steps > limit:
                raise UserError(
                    f"{message}. This is number {self.skipped_steps}, and learner.max_skipped_steps is {limit}: look "
                    "at these dialogues, lower the learning rate, or choose a dtype with more range"
                )
            logger.warning(f"{message} ({self.skipped_steps} of at most {limit})")

    def _score(
        self, name: str, batch: SampleBatch, temperature: float
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._call(LearnerRank.score, name, ray.put(batch), temperature)

    def log_probs(
        self, name: str, sequences: Sequence[TokenSequence], temperature: float = 1.0
    ) -> list[NDArray[np.float32]]:
        """Log-probs in nats of the masked tokens, one array [T] a sequence, NaN where not masked."""
        if not sequences:
            return []
        batch = SampleBatch.of_sequences(sequences)
        return batch.split(self._score(name, batch, temperature)[0])

    def values(self, name: str, sequences: Sequence[TokenSequence]) -> list[NDArray[np.float32]]:
        """What the value head of ``name`` predicts before the masked tokens, one array [T] a sequence, NaN where not
        masked."""
        return self.log_probs(name, sequences)

    def evaluate(self, name: str, samples: Sequence[Sample], temperature: float = 1.0) -> dict[str, float]:
        """``nll`` (mean over scored tokens), ``weighted_nll`` (with the samples' weights), ``entropy``, in
        nats a token, and ``tokens``."""
        if not samples:
            raise UserError(f"learner: no samples to evaluate '{name}' on")
        batch = SampleBatch.of(samples)
        logprobs, entropies = (values[batch.scored] for values in self._score(name, batch, temperature))
        weights = batch.token_weights[batch.scored].astype(np.float64)
        if not len(logprobs):
            raise UserError(f"learner: no token of the samples to evaluate '{name}' on is masked")
        if not np.isfinite(logprobs).all():
            first_broken = int(batch.sequence_of[batch.scored][~np.isfinite(logprobs)][0])
            raise UserError(
                f"learner: '{name}' gives log-probs that are not finite, as in "
                f"{samples[first_broken].name or 'a sample'}: its weights are broken, or its dtype has too little range"
            )
        return {
            "nll": -float(logprobs.mean(dtype=np.float64)),
            "weighted_nll": -float((weights * logprobs).sum() / max(weights.sum(), 1e-12)),
            "entropy": float(entropies.mean(dtype=np.float64)),
            "tokens": float(len(logprobs)),
        }

    def weight_update(self, name: str, version: int) -> WeightUpdate:
        """The update with which engines serve ``name`` as ``version``. The ranks choose its transport
        (``LearnerRank.prepare_update``)."""
        transport = self._call(LearnerRank.prepare_update, name)
        if transport is Transport.LORA:
            base = self._lora_bases.get(name, lambda: self._ship(LearnerRank.full_weights, name))
            return LoRAUpdate(version=version, base=base, lora=self._ship(LearnerRank.lora_weights, name))
        if transport is Transport.SHARED_MEMORY:
            shared = self._call(LearnerRank.shared_weights, name)
            assert shared is not None, "only other ranks than the first return nothing"
            return SharedUpdate(version=version, weights=shared)
        return FullUpdate(version=version, weights=self._ship(LearnerRank.full_weights, name))

    def _ship(self, method: Callable[[LearnerRank, str], T], name: str) -> ObjectRef[T]:
        """The first rank's result in Ray's store; it is not fetched to this process."""
        refs = [rank.call(method, name).reference for rank in self._ranks]
        pending, deadline = list(refs), time.monotonic() + self.config.timeout_seconds
        while pending:
            done, pending = ray.wait(
                pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()), fetch_local=False
            )
            if not done:
                raise PartLost("the learner's weights were not gathered in time")
        # The result of a dead rank is ready, too, as an error that would be blamed on the replica that fetches it.
        self._call(LearnerRank.check, name)
        shipped: ObjectRef[T] = refs[0]
        return shipped

    def measure_peak_memory(self, lengths: Mapping[str, int]) -> DeviceMemory:
        """Take a step with each of the models that changes no weights, on a full micro-batch of sequences of so many
        tokens; returns the first rank's device memory at the peak."""
        return self._call(LearnerRank.measure_peak_memory, dict(lengths))

    def save(self, name: str, folder: str | Path) -> None:
        """Write ``name`` in Hugging Face format with its tokenizer; whole or not at all."""
        target = NodeFolder.here(folder)
        self._wait([rank.save(name, target) for rank in self._ranks])

    def snapshot(self, names: Sequence[str]) -> None:
        """Copy the trainable models in ``names`` into the memory of the first rank, for ``write_snapshot``."""
        self._wait([rank.take_snapshot(names) for rank in self._ranks])

    def write_snapshot(self, folder: str | Path) -> None:
        """Write the last ``snapshot``, once. Another thread may call the other methods meanwhile.

        Raises:
            OSError: the disk does not take it, or the folder's node is gone.
            RayError: the rank is gone, or has not written it within ``config.timeout_seconds``.
        """
        failure = self._ranks[0].write_snapshot(NodeFolder.here(folder)).result(self.config.timeout_seconds)
        if failure is not None:
            raise failure

    def restore(self, folder: str | Path) -> None:
        """Replace all trainable models by those of a checkpoint, of whatever number of ranks and ZeRO stage."""
        self._lora_bases.forget()
        checkpoint = NodeFolder.here(folder)
        self._wait([rank.restore(checkpoint) for rank in self._ranks])

    def close(self) -> None:
        """End the rank processes."""
        for rank in self._ranks:
            ray.kill(rank.actor)
        self._ranks = []
