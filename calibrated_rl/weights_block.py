"""A model's weights in one block of memory that learner and engines share: of their GPU, or of their machine.

The learner writes new weights there, engines on the same GPU (or, without one, on the same machine) look into it, and
nothing else carries a byte. The block is made once and opened once. It begins with a *stamp*, the number of the weights
that it holds: who reads compares it before and after, since by then the learner may have gone on.
"""

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler  # torch adds to it how memory of a GPU is opened

import torch
from torch import Tensor

from calibrated_rl.weights import ALIGNMENT, Bucket, Shape, laid_out

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
    bucket: Bucket
    stamp: int

    @property
    def size(self) -> int:
        """Of the block in bytes."""
        return ALIGNMENT + self.bucket.size


class WeightsBlock:
    """The learner's side."""

    def __init__(self, shapes: Mapping[str, Shape], dtype: str, device: torch.device) -> None:
        """
        Args:
            shapes: of the weights, by their Hugging Face names.
            dtype: that engines get them in, by torch's word for it.
        """
        self._bucket = Bucket(tuple(laid_out({name: (dtype, shape) for name, shape in shapes.items()})))
        size = ALIGNMENT + self._bucket.size
        self._opening: str | bytes
        self._file: int | None = None
        if device.type == "cpu":
            self._file = os.memfd_create(NAME)
            os.ftruncate(self._file, size)
            self._opening = f"/proc/{os.getpid()}/fd/{self._file}"
            self._block = torch.from_file(self._opening, shared=True, size=size, dtype=torch.uint8)
        else:
            self._block = torch.empty(size, dtype=torch.uint8, device=device)
            self._opening = bytes(ForkingPickler.dumps(self._block))
        self._written = 0

    def write(self, tensors: Iterable[tuple[str, Tensor]]) -> WeightsInBlock:
        """Replace the weights by ``tensors``, all of them, in the order of the shapes."""
        self._stamp(WRITING)
        places = self._bucket.tensors(self._block[ALIGNMENT:])
        for (name, place), (given, tensor) in zip(places, tensors, strict=True):
            assert name == given, f"{given} comes where {name} is due"
            place.copy_(tensor)
        self._written += 1
        self._stamp(self._written)
        return WeightsInBlock(self._opening, self._bucket, self._written)

    def _stamp(self, number: int) -> None:
        if self._block.is_cuda:
            torch.cuda.synchronize(self._block.device)
        _stamp_of(self._block).fill_(number)
        if self._block.is_cuda:
            torch.cuda.synchronize(self._block.device)

    def close(self) -> None:
        """Free it, once all who opened it have let go of it as well."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        del self._block


class OpenBlocks:
    """The engine's side: each block is opened once."""

    def __init__(self) -> None:
        self._opened: dict[str | bytes, Tensor] = {}

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
        if weights.opening not in self._opened:
            self._opened[weights.opening] = (
                torch.from_file(weights.opening, shared=True, size=weights.size, dtype=torch.uint8)
                if isinstance(weights.opening, str)
                else pickle.loads(weights.opening)
            )
        return self._opened[weights.opening]


def _stamp_of(block: Tensor) -> Tensor:
    return block[:8].view(torch.int64)
