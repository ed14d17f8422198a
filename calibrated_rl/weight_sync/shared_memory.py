"""Weights in memory that learner and engines share: of their machine, or (CUDA IPC) of their GPU.

The learner writes new weights there, engines on the same GPU (or, without one, on the same machine) read it
directly. Memory is made once for each model and opened once by each engine. It begins with a *write count* of the
learner for that model (the version of an update is another number, which restarts with each arm): readers compare it
before and after, since the learner may have written again meanwhile. There are two memories, written in turns: a
replica that rejoins may still read while the learner writes.
"""

import base64
import os
import pickle
import socket
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler  # torch adds to it how memory of a GPU is opened
from typing import Any, ClassVar
from uuid import uuid4

import torch
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.weight_sync.base import (
    LearnerModel,
    ReaderName,
    Receiver,
    Transport,
    WeightUpdate,
    WorkerMessage,
)
from calibrated_rl.weight_sync.buckets import ALIGNMENT, Bucket, offsets_of
from calibrated_rl.weight_sync.tensors import Shape

MEMORY_NAME = "calibrated_rl_weights_block"
"""What the operating system shows of the machine's memory among the open files of the learner."""
WRITING = -1
"""The write count while weights are being written."""


class WeightsReplaced(RuntimeError):
    """The memory contains other weights than those that were to be read."""


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """The location of weights in shared memory."""

    handle: str | bytes
    """Path of the machine's memory, or what torch opens a GPU's with, in another process."""
    memory: str
    """Unique name of the memory."""
    location: str
    """The machine's name, and on a GPU which of its GPUs."""
    bucket: Bucket
    write_count: int

    @property
    def size(self) -> int:
        """Of the memory in bytes."""
        return ALIGNMENT + self.bucket.size

    def plain(self) -> dict[str, Any]:
        """Of plain values, for channels that carry nothing else."""
        handle = self.handle if isinstance(self.handle, str) else base64.b64encode(self.handle).decode()
        return {
            "handle": handle, "on_gpu": isinstance(self.handle, bytes), "memory": self.memory,
            "location": self.location, "write_count": self.write_count, "offsets": self.bucket.plain(),
        }  # fmt: skip

    @classmethod
    def of_plain(cls, values: Mapping[str, Any]) -> "SharedWeights":
        """What ``plain`` returned."""
        handle = values["handle"]
        return cls(
            handle=base64.b64decode(handle) if values["on_gpu"] else handle, memory=values["memory"],
            location=values["location"], bucket=Bucket.of_plain(values["offsets"]),
            write_count=values["write_count"],
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharedUpdate(WeightUpdate):
    """The location of all weights, valid until the learner has written twice more."""

    transport: ClassVar[Transport] = Transport.SHARED_MEMORY

    weights: SharedWeights

    async def receive(self, receiver: Receiver) -> AsyncGenerator[WorkerMessage]:
        check_reachable(self.weights, on_gpu=receiver.on_gpu)
        receiver.lora_base = None
        return self._messages()

    async def _messages(self) -> AsyncGenerator[WorkerMessage]:
        yield {"reader": ReaderName.SHARED_MEMORY, "content": self.weights.plain()}


# ---- the learner's end ---------------------------------------------------------------------------------


class SharedMemories:
    """A learner rank's memories, by the name of the model. They stay when a model is unloaded: a replica that
    rejoins needs the weights that were sent last."""

    def __init__(self, dtype: str, device: torch.device, rank: int) -> None:
        """``dtype``: of all models, by torch's name for it."""
        self._dtype, self._device, self._rank = dtype, device, rank
        self._writers: dict[str, SharedWeightsWriter] = {}

    def make(self, name: str, model: LearnerModel) -> None:
        """Make the memory for ``model``, on rank 0, unless it is there.

        Raises:
            UserError: there is not enough.
        """
        shapes = model.shapes()
        if self._rank or (name in self._writers and self._writers[name].shapes == shapes):
            return
        if name in self._writers:
            self._writers.pop(name).close()
        try:
            self._writers[name] = SharedWeightsWriter(self._dtype, shapes, self._device)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"there is no memory to share the weights of '{name}' with engines: set learner.share_weights=false"
            ) from error

    def write(self, name: str, model: LearnerModel) -> SharedWeights | None:
        """Write the full weights of ``model``; on rank 0, where they are. All ranks must call it."""
        if self._rank == 0:
            return self._writers[name].write(model.on_device())
        for _ in model.on_device():  # takes part in gathering sharded parameters
            pass
        return None


class SharedWeightsWriter:
    """Two memories for the weights of one model."""

    def __init__(self, dtype: str, shapes: Mapping[str, Shape], device: torch.device) -> None:
        """
        Args:
            dtype: of the weights, by torch's name for it.
            shapes: of the weights, by their Hugging Face names.

        Raises:
            RuntimeError, OSError: there is not enough memory.
        """
        self.shapes = dict(shapes)
        bucket = Bucket(tuple(offsets_of({name: (dtype, shape) for name, shape in shapes.items()})))
        self._memories = [_Memory(bucket, device) for _ in range(2)]
        self._written = 0

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> SharedWeights:
        """Put ``tensors``, all of them in the order of the shapes, in place of those of the last call but one."""
        self._written += 1
        return self._memories[self._written % 2].write(tensors, self._written)

    def close(self) -> None:
        """Free both, once all readers have closed them as well."""
        for memory in self._memories:
            memory.close()


class _Memory:
    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self._bucket, self._name = bucket, uuid4().hex
        size = ALIGNMENT + bucket.size
        self._handle: str | bytes
        self._file: int | None = None
        if device.type == "cpu":
            self._file = os.memfd_create(MEMORY_NAME)
            os.posix_fallocate(self._file, 0, size)
            self._handle = f"/proc/{os.getpid()}/fd/{self._file}"
            self._bytes = torch.from_file(self._handle, shared=True, size=size, dtype=torch.uint8)
        else:
            self._bytes = torch.empty(size, dtype=torch.uint8, device=device)
            self._handle = bytes(ForkingPickler.dumps(self._bytes))

    def write(self, tensors: Iterable[tuple[str, Tensor]], write_count: int) -> SharedWeights:
        self._set_write_count(WRITING)
        targets = self._bucket.tensors(self._bytes[ALIGNMENT:])
        for (name, target), (tensor_name, tensor) in zip(targets, tensors, strict=True):
            assert name == tensor_name, f"expected {name}, got {tensor_name}"
            target.copy_(tensor)
        self._set_write_count(write_count)
        location = location_of(on_gpu=self._bytes.is_cuda)
        return SharedWeights(self._handle, self._name, location, self._bucket, write_count)

    def _set_write_count(self, number: int) -> None:
        if self._bytes.is_cuda:
            torch.cuda.synchronize(self._bytes.device)
        _write_count(self._bytes).fill_(number)
        if self._bytes.is_cuda:
            torch.cuda.synchronize(self._bytes.device)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        del self._bytes


def _write_count(memory: Tensor) -> Tensor:
    return memory[:8].view(torch.int64)


def location_of(*, on_gpu: bool) -> str:
    """Where this process has its memory, or that of its first GPU."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return f"{socket.gethostname()}, GPU {gpu}" if on_gpu else socket.gethostname()


# ---- the engine's end ----------------------------------------------------------------------------------


def check_reachable(weights: SharedWeights, *, on_gpu: bool) -> None:
    """Refuse weights that an engine of this process could not open.

    Args:
        on_gpu: the engine is on this process's first GPU.

    Raises:
        UserError: says where they are and where the engine is.
    """
    in_memory = isinstance(weights.handle, str)
    location = location_of(on_gpu=on_gpu and not in_memory)
    reachable = location == weights.location
    if reachable and isinstance(weights.handle, str):
        try:
            reachable = MEMORY_NAME in os.readlink(weights.handle)
        except OSError:  # processes of another container or user
            reachable = False
    if not reachable:
        raise UserError(
            f"a replica on {location} cannot read the weights that the learner shares on {weights.location}: "
            "set learner.share_weights=false"
        )


class SharedMemoryReader:
    """In vLLM's worker: each memory is opened once."""

    reuses_memory = False

    def __init__(self) -> None:
        self._opened: dict[str, Tensor] = {}
        """By the name of the memory, uint8."""
        self._last: SharedWeights | None = None

    def read(self, content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the weights that ``content`` describes in plain values.

        Raises:
            WeightsReplaced: they are no longer there.
        """
        self._last = SharedWeights.of_plain(content)
        return self.tensors(self._last)

    def check(self) -> None:
        """
        Raises:
            WeightsReplaced: the weights that were read last are no longer there.
        """
        assert self._last is not None, "nothing was read"
        self.check_write_count(self._last)

    def tensors(self, weights: SharedWeights) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, which are views of the memory: ``check_write_count`` when they have been used.

        Raises:
            WeightsReplaced: they are no longer there.
        """
        self.check_write_count(weights)
        return weights.bucket.tensors(self._memory(weights)[ALIGNMENT:])

    def check_write_count(self, weights: SharedWeights) -> None:
        """
        Raises:
            WeightsReplaced: they are no longer there.
        """
        current_count = int(_write_count(self._memory(weights)).item())
        if current_count != weights.write_count:
            raise WeightsReplaced(
                f"weights number {weights.write_count} were replaced by {current_count} before they were read"
            )

    def _memory(self, weights: SharedWeights) -> Tensor:
        if weights.memory not in self._opened:
            self._opened[weights.memory] = (
                torch.from_file(weights.handle, shared=True, size=weights.size, dtype=torch.uint8)
                if isinstance(weights.handle, str)
                else pickle.loads(weights.handle)
            )
        return self._opened[weights.memory]
