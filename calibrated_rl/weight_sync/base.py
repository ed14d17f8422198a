"""How new weights get from the learner to the replicas: the protocol. Each transport is a file beside this one.

An update passes four processes. On every *rank of the learner*, the model's weights are gathered and shipped
(``LearnerModel`` is what a transport needs of a model there). The *driver* gets a ``WeightUpdate``: a small object with
the version and the location of the weights. Every *replica* gets that same update and calls ``receive``, which fetches
the weights before sampling pauses, and then sends the engine messages about where the tensors are, one by one.
In *vLLM's worker* a ``WorkerReader`` reads them there, and the model loads them (``vllm_worker.py``).

- **Object store** (``object_store.py``): all weights become one object in Ray's store, out of the learner's own
  tensors; any machine can fetch it. The replica passes it to its engine in buckets (``buckets.py``).
- **Shared memory** (``shared_memory.py``): the learner writes all weights into memory that it keeps for each model, of
  the machine or (CUDA IPC) of its GPU. The update names that memory, and the worker opens it and reads from there;
  nothing else transports weights.
- **LoRA** (``lora.py``): the base goes through the object store once, and each update ships the low-rank adapters
  alone. The replica merges them into the base as the learner does, bit for bit (``merging.py``), and passes the merged
  weights to its engine in buckets.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol, TypedDict, TypeVar

from torch import Tensor

from calibrated_rl.weight_sync.buckets import BucketSender
from calibrated_rl.weight_sync.tensors import Shape, Weights

T_co = TypeVar("T_co", covariant=True)


class Transport(StrEnum):
    """How the weights of an update travel."""

    OBJECT_STORE = "object_store"
    SHARED_MEMORY = "shared_memory"
    LORA = "lora"


class ObjectRef(Protocol[T_co]):
    """Ray's reference to an object in its store, with the type of that object, which Ray's own does not carry."""

    def __await__(self) -> Generator[Any, None, T_co]: ...


class LearnerModel(Protocol):
    """A model on a rank of the learner. All ranks must call each method that gathers (all but ``shapes``)."""

    @property
    def trainable(self) -> bool: ...

    @property
    def lora_scale(self) -> float | None:
        """What the product of an adapter's matrices is multiplied with; None: the model is not trained by adapters."""

    def shapes(self) -> dict[str, Shape]:
        """Of the full weights, by their Hugging Face names."""

    def weights(self, *, copy: bool) -> dict[str, Tensor]:
        """Full weights on the CPU, without adapters; empty on ranks other than 0. Without ``copy`` they look into the
        model where they can."""

    def on_device(self) -> Iterator[tuple[str, Tensor]]:
        """The full weights one after the other, where they are; each only until the next."""

    def adapters(self, *, copy: bool) -> dict[str, Tensor]:
        """The adapters' matrices, as ``weights``."""


class ReaderName(StrEnum):
    """Which ``WorkerReader`` a message is for."""

    BUCKET = "bucket"
    SHARED_MEMORY = "shared_memory"


class WorkerMessage(TypedDict):
    """A message of a replica to its engine, in plain values: vLLM's control channel carries nothing else."""

    reader: ReaderName
    content: dict[str, Any]


class WorkerReader(Protocol):
    """Finds tensors inside vLLM's worker."""

    reuses_memory: bool
    """Whether the next message's tensors overwrite this one's."""

    def read(self, content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors that a message announced; they look into shared memory."""

    def check(self) -> None:
        """After the last message: refuse the update if the tensors have been overwritten meanwhile."""


@dataclass(slots=True, kw_only=True)
class Receiver:
    """The state that a replica keeps from one update to the next."""

    on_gpu: bool
    """Its engine is on the first GPU of its process."""
    buckets: BucketSender
    lora_base: str | None = None
    """Name of the base whose weights the engine has, but for adapters; None: weights of another kind of update."""

    async def bucket_messages(self, weights: Weights) -> AsyncGenerator[WorkerMessage]:
        """``weights`` bucket by bucket; each message is only valid until the next is requested."""
        async with aclosing(self.buckets.contents(weights)) as contents:
            async for content in contents:
                yield {"reader": ReaderName.BUCKET, "content": content}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightUpdate(ABC):
    """New weights for the replicas of a role, as the learner offers them; the same for all replicas. It pickles."""

    transport: ClassVar[Transport]

    version: int
    """Of these weights: every token that is sampled under them carries it."""

    @abstractmethod
    async def receive(self, receiver: Receiver) -> AsyncGenerator[WorkerMessage]:
        """In the replica's process, while the engine still samples: fetch what was shipped and return the
        messages for the engine, to be sent one by one once it has paused. The generator must be closed.

        Raises:
            UserError: this replica cannot reach what was shipped.
            RayError: it is lost.
        """
