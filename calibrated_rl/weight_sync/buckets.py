"""Buckets: flat memory with many tensors, each at its offset; and how a replica passes them to its engine.

vLLM runs a replica's engine in a process of its own, whose control channel carries plain values alone. So the replica
writes bucket after bucket into memory that both processes share, and sends the offset of each tensor. There are two
such memories: while the engine reads one, the replica fills the other.

Memory is made once and used for every update: fresh memory costs several times what copying into it does, because the
operating system provides it in pages of 4 KiB, each of them cleared first. It has no name in any folder, so that
nothing remains of it whatever process dies, and the size of ``/dev/shm``, which containers keep small, does not count.
"""

import asyncio
import dataclasses
import mmap
import os
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrated_rl.weight_sync.tensors import Shape, Weights, tensor_of_bytes

ALIGNMENT = 64
"""Offsets are multiples of this many bytes: a cache line, and the alignment of the widest instructions."""

MEMORY_NAME = "calibrated_rl_weights"
"""What the operating system shows of a ``SharedBucket`` among the open files of a replica."""


@dataclass(frozen=True, slots=True)
class TensorOffset:
    """The position of a tensor in its bucket."""

    name: str
    dtype: str
    """By torch's name for it."""
    shape: Shape
    start: int
    """In bytes."""

    @property
    def end(self) -> int:
        """In bytes."""
        return self.start + prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together."""

    offsets: tuple[TensorOffset, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.offsets[-1].end

    def fill(self, target: NDArray[np.uint8], weights: Weights) -> None:
        """Write the bucket's tensors to ``target``, of at least its size."""
        for offset in self.offsets:
            target[offset.start : offset.end] = weights.content(offset.name)

    def tensors(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a bucket whose bytes ``flat`` (uint8) begins with; they look into it."""
        for offset in self.offsets:
            yield offset.name, tensor_of_bytes(flat[offset.start : offset.end], offset.dtype, offset.shape)

    def plain(self) -> list[tuple[Any, ...]]:
        """Of plain values, for channels that carry nothing else: the fields of each offset."""
        return [dataclasses.astuple(offset) for offset in self.offsets]

    @classmethod
    def of_plain(cls, offsets: Iterable[Sequence[Any]]) -> "Bucket":
        """What ``plain`` returned; a channel may have made lists of its tuples."""
        return cls(tuple(TensorOffset(name, dtype, tuple(shape), start) for name, dtype, shape, start in offsets))


def _aligned(end: int) -> int:
    return -(-end // ALIGNMENT) * ALIGNMENT


def offsets_of(kinds: Mapping[str, tuple[str, Shape]]) -> Iterator[TensorOffset]:
    """Offsets of tensors of these dtypes and shapes, one after the other."""
    end = 0
    for name, (dtype, shape) in kinds.items():
        offset = TensorOffset(name, dtype, shape, _aligned(end))
        yield offset
        end = offset.end


def buckets_of(weights: Weights, max_bytes: int) -> list[Bucket]:
    """Cut ``weights`` into buckets of at most ``max_bytes``, in their order; a tensor that is larger has its own."""
    buckets: list[Bucket] = []
    offsets: list[TensorOffset] = []
    for name in weights:
        start = _aligned(offsets[-1].end) if offsets else 0
        offset = TensorOffset(name, *weights.kind(name), start)
        if offsets and offset.end > max_bytes:
            buckets.append(Bucket(tuple(offsets)))
            offsets, offset = [], TensorOffset(name, *weights.kind(name), 0)
        offsets.append(offset)
    return [*buckets, Bucket(tuple(offsets))] if offsets else buckets


class SharedBucket:
    """Memory for one bucket at a time; it grows to the largest."""

    def __init__(self) -> None:
        self._file = os.memfd_create(MEMORY_NAME)
        self._memory: mmap.mmap | None = None
        self.size = 0
        """In bytes."""

    @property
    def path(self) -> str:
        """Where processes of the same user on this machine can open it."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def write(self, bucket: Bucket, weights: Weights) -> None:
        """Replace what is in it by ``bucket``."""
        if self._memory is None or bucket.size > self.size:
            self.size = max(bucket.size, 1)
            os.ftruncate(self._file, self.size)
            self._memory = mmap.mmap(self._file, self.size)
        bucket.fill(np.frombuffer(self._memory, np.uint8), weights)

    def close(self) -> None:
        """Free it, once the engine's process is gone as well."""
        self._memory = None
        os.close(self._file)


class BucketSender:
    """The replica's end."""

    def __init__(self, max_bucket_bytes: int) -> None:
        self._max_bucket_bytes = max_bucket_bytes
        self._memories = SharedBucket(), SharedBucket()

    async def contents(self, weights: Weights) -> AsyncGenerator[dict[str, Any]]:
        """The messages for ``BucketReader``, one a bucket; each is only valid until the next is requested. Meanwhile
        the following bucket is filled."""
        if not (buckets := buckets_of(weights, self._max_bucket_bytes)):
            return

        def fill_bucket(number: int) -> dict[str, Any]:
            bucket, memory = buckets[number], self._memories[number % 2]
            memory.write(bucket, weights)
            return {"path": memory.path, "size": memory.size, "offsets": bucket.plain()}

        filling = asyncio.create_task(asyncio.to_thread(fill_bucket, 0))
        try:
            for number in range(len(buckets)):
                content = await filling
                if number + 1 < len(buckets):
                    filling = asyncio.create_task(asyncio.to_thread(fill_bucket, number + 1))
                yield content
        finally:
            await asyncio.wait({filling})  # nothing may write into a bucket that another update fills

    def close(self) -> None:
        """Free the memory, once the engine's process is gone as well."""
        for memory in self._memories:
            memory.close()


class BucketReader:
    """The end in vLLM's worker."""

    reuses_memory = True

    def __init__(self) -> None:
        self._mapped: dict[str, Tensor] = {}
        """The replica's memories, uint8, by their path; each mapped once, until it grows."""

    def read(self, content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the bucket that ``BucketSender`` has announced."""
        return Bucket.of_plain(content["offsets"]).tensors(self._memory(content["path"], content["size"]))

    def check(self) -> None:
        """Does nothing: the replica changes nothing before the next bucket is requested."""

    def _memory(self, path: str, size: int) -> Tensor:
        if path not in self._mapped or len(self._mapped[path]) != size:
            self._mapped[path] = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        return self._mapped[path]
