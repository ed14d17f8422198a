"""A model's weights as bytes by name, with as few copies as possible."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, ...]


class Weights(Mapping[str, Tensor]):
    """Tensors on the CPU by their Hugging Face names.

    They pickle with their bytes out of band: Ray copies them once, out of the learner's own tensors into one object of
    its store, and on the same machine that object is read without a copy. So the tensors must not change before they
    are pickled, and unpickled tensors are read-only.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._set(
            [(name, dtype_name(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()],
            [flat_bytes(tensor) for tensor in tensors.values()],
        )

    def _set(self, kinds: list[tuple[str, str, Shape]], contents: list[NDArray[np.uint8]]) -> None:
        self._kinds = {name: (dtype, shape) for name, dtype, shape in kinds}
        self._contents = dict(zip(self._kinds, contents, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        kinds = [(name, dtype, shape) for name, (dtype, shape) in self._kinds.items()]
        return _unpickled, (kinds, list(self._contents.values()))

    def __getitem__(self, name: str) -> Tensor:
        dtype, shape = self._kinds[name]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return tensor_of_bytes(torch.from_numpy(self._contents[name]), dtype, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def content(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, flat."""
        return self._contents[name]

    def kind(self, name: str) -> tuple[str, Shape]:
        """The tensor's dtype, by torch's name for it, and shape."""
        return self._kinds[name]


def _unpickled(kinds: list[tuple[str, str, Shape]], contents: list[NDArray[np.uint8]]) -> Weights:
    weights = Weights.__new__(Weights)
    weights._set(kinds, contents)
    return weights


def flat_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """The bytes of ``tensor``, in its order; they look into it if it is contiguous and on the CPU."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def tensor_of_bytes(flat: Tensor, dtype: str, shape: Shape) -> Tensor:
    """The tensor whose bytes ``flat`` (uint8) are; it looks into them."""
    return flat.view(getattr(torch, dtype)).view(shape)


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name for it, without ``torch.``."""
    return str(dtype).removeprefix("torch.")
