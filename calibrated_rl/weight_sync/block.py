"""A model's weights in memory that learner and engines share: of their GPU, or of their machine.

The learner writes new weights there, engines on the same GPU (or, without one, on the same machine) look into it, and
nothing else carries a byte. Each block is made once and opened once. It begins with a *stamp*, the number of the
weights that it holds: who reads compares it before and after, since by then the learner may have gone on. There are two
blocks, written in turns: a replica that comes back may still read while the learner writes.
"""

import base64
import os
import pickle
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler  # torch adds to it how memory of a GPU is opened
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from calibrated_rl.errors import UserError
from calibrated_rl.weight_sync.weights import ALIGNMENT, Bucket, Shape, laid_out

NAME = "calibrated_rl_weights_block"
"""What the operating system shows of a block of the machine's memory among the open files of the learner."""
WRITING = -1
"""The stamp while weights are written."""


class WeightsReplaced(RuntimeError):
    """The block holds other weights than those that were to be read."""


@dataclass(frozen=True, slots=True)
class WeightsInBlock:
    """What is sent in place of weights: where they are."""

    opening: str | bytes
    """Path of the machine's memory, or what torch opens a GPU's with, in another process."""
    block: str
    """Which block: no other ever has this name."""
    place: str
    """The machine's name, and on a GPU which of its GPUs."""
    bucket: Bucket
    stamp: int

    @property
    def size(self) -> int:
        """Of the block in bytes."""
        return ALIGNMENT + self.bucket.size

    def message(self) -> dict[str, Any]:
        """Of plain values."""
        opening = self.opening if isinstance(self.opening, str) else base64.b64encode(self.opening).decode()
        return {
            "opening": opening, "on_gpu": isinstance(self.opening, bytes), "block": self.block, "place": self.place,
            "stamp": self.stamp,
            "places": self.bucket.plain(),
        }  # fmt: skip

    @classmethod
    def of_message(cls, message: Mapping[str, Any]) -> "WeightsInBlock":
        """What ``message`` said."""
        opening = message["opening"]
        return cls(
            opening=base64.b64decode(opening) if message["on_gpu"] else opening, block=message["block"],
            place=message["place"], bucket=Bucket.of_plain(message["places"]), stamp=message["stamp"],
        )  # fmt: skip


class WeightsBlocks:
    """The learner's side."""

    def __init__(self, dtype: str, shapes: Mapping[str, Shape], device: torch.device) -> None:
        """
        Args:
            dtype: of the weights, by torch's word for it.
            shapes: of the weights, by their Hugging Face names.

        Raises:
            RuntimeError, OSError: there is no room.
        """
        self.kinds = dtype, dict(shapes)
        bucket = Bucket(tuple(laid_out({name: (dtype, shape) for name, shape in shapes.items()})))
        self._blocks = [_Block(bucket, device) for _ in range(2)]
        self._written = 0

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> WeightsInBlock:
        """Put ``tensors``, all of them in the order of the shapes, in place of those that were written before the
        last."""
        self._written += 1
        return self._blocks[self._written % 2].write(tensors, self._written)

    def close(self) -> None:
        """Free them, once all who opened them have let go of them as well."""
        for block in self._blocks:
            block.close()


class _Block:
    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        self._bucket, self._name = bucket, uuid4().hex
        size = ALIGNMENT + bucket.size
        self._opening: str | bytes
        self._file: int | None = None
        if device.type == "cpu":
            self._file = os.memfd_create(NAME)
            os.posix_fallocate(self._file, 0, size)
            self._opening = f"/proc/{os.getpid()}/fd/{self._file}"
            self._block = torch.from_file(self._opening, shared=True, size=size, dtype=torch.uint8)
        else:
            self._block = torch.empty(size, dtype=torch.uint8, device=device)
            self._opening = bytes(ForkingPickler.dumps(self._block))

    def write(self, tensors: Iterable[tuple[str, Tensor]], stamp: int) -> WeightsInBlock:
        self._stamp(WRITING)
        places = self._bucket.tensors(self._block[ALIGNMENT:])
        for (name, place), (given, tensor) in zip(places, tensors, strict=True):
            assert name == given, f"{given} comes where {name} is due"
            place.copy_(tensor)
        self._stamp(stamp)
        return WeightsInBlock(self._opening, self._name, place_of(on_gpu=self._block.is_cuda), self._bucket, stamp)

    def _stamp(self, number: int) -> None:
        if self._block.is_cuda:
            torch.cuda.synchronize(self._block.device)
        _stamp_of(self._block).fill_(number)
        if self._block.is_cuda:
            torch.cuda.synchronize(self._block.device)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        del self._block


def place_of(*, on_gpu: bool) -> str:
    """Where this process has its memory, or that of its first GPU."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return f"{socket.gethostname()}, GPU {gpu}" if on_gpu else socket.gethostname()


def check_reach(weights: WeightsInBlock, *, on_gpu: bool) -> None:
    """Refuse weights that an engine of this process could not open.

    Args:
        on_gpu: the engine is on this process's first GPU.

    Raises:
        UserError: says where they are and where the engine is.
    """
    in_memory = isinstance(weights.opening, str)
    own = place_of(on_gpu=on_gpu and not in_memory)
    reached = own == weights.place
    if reached and isinstance(weights.opening, str):
        try:
            reached = NAME in os.readlink(weights.opening)
        except OSError:  # processes of another container or user
            reached = False
    if not reached:
        raise UserError(
            f"a replica on {own} cannot read the weights that the learner shares on {weights.place}: "
            "set learner.share_weights=false"
        )


class OpenBlocks:
    """The engine's side: each block is opened once."""

    def __init__(self) -> None:
        self._opened: dict[str, Tensor] = {}
        """By the name of the block."""

    def read(self, weights: WeightsInBlock) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, which look into the block: ``check`` when they have been used.

        Raises:
            WeightsReplaced: they are no longer there.
        """
        self.check(weights)
        return weights.bucket.tensors(self._block(weights)[ALIGNMENT:])

    def check(self, weights: WeightsInBlock) -> None:
        """
        Raises:
            WeightsReplaced: they are no longer there.
        """
        found = int(_stamp_of(self._block(weights)).item())
        if found != weights.stamp:
            raise WeightsReplaced(f"weights number {weights.stamp} were replaced by {found} before they were read")

    def _block(self, weights: WeightsInBlock) -> Tensor:
        if weights.block not in self._opened:
            self._opened[weights.block] = (
                torch.from_file(weights.opening, shared=True, size=weights.size, dtype=torch.uint8)
                if isinstance(weights.opening, str)
                else pickle.loads(weights.opening)
            )
        return self._opened[weights.block]


def _stamp_of(block: Tensor) -> Tensor:
    return block[:8].view(torch.int64)
