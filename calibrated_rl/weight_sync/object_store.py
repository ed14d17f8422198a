"""All weights as one object in Ray's store: the transport that works everywhere."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from calibrated_rl.weight_sync.base import LearnerModel, ObjectRef, Receiver, Transport, WeightUpdate, WorkerMessage
from calibrated_rl.weight_sync.tensors import Weights


def full_weights(model: LearnerModel) -> Weights:
    """The learner's end: all weights of ``model`` without adapters, on rank 0. Pickle them before the model takes its
    next step, because they are views of it."""
    return Weights(model.weights(copy=False))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FullUpdate(WeightUpdate):
    """All weights, tied ones once."""

    transport: ClassVar[Transport] = Transport.OBJECT_STORE

    weights: ObjectRef[Weights]

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], version: int) -> "FullUpdate":
        """Put ``tensors`` (on the CPU, by their Hugging Face names) into Ray's store."""
        import ray

        return cls(version=version, weights=ray.put(Weights(tensors)))

    async def receive(self, receiver: Receiver) -> AsyncGenerator[WorkerMessage]:
        weights = await self.weights
        receiver.lora_base = None
        return receiver.bucket_messages(weights)
