"""A model's weights on their way from the learner to the engines: bytes that are copied as rarely as can be.

``Weights`` pickles with its bytes out of band: Ray copies them once, out of the learner's own tensors into one object
of its store, and who gets that object on the same machine looks into it without a copy. From there they go to an engine
in *buckets*, large flat blocks of bytes that hold many tensors each.
"""

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibrated_rl.weight_sync.merging import merged

ALIGNMENT = 64
"""Tensors begin at multiples of so many bytes in a bucket: a cache line, and what the widest instructions like best."""

Shape = tuple[int, ...]
A, B = ".lora_A", ".lora_B"
"""How the names of an adapter's two matrices end, which are parameters of its linear map; see ``learner/lora.py``."""


class Weights(Mapping[str, Tensor]):
    """Tensors on the CPU by their Hugging Face names.

    They are not copied: who pickles the weights must not change the tensors before that is done, and tensors that were
    unpickled can only be read.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._set(
            [(name, _word(each.dtype), tuple(each.shape)) for name, each in tensors.items()],
            [_flat_bytes(each) for each in tensors.values()],
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
            return read(torch.from_numpy(self._contents[name]), dtype, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def content(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, flat."""
        return self._contents[name]

    def kind(self, name: str) -> tuple[str, Shape]:
        """The tensor's dtype, in torch's word for it, and shape."""
        return self._kinds[name]


@dataclass(frozen=True, slots=True)
class Adapters:
    """All that a model's training has changed, where it is trained by low-rank adapters."""

    factors: Weights
    """Both matrices of each, float32, under their Hugging Face names."""
    scale: float


@dataclass(frozen=True, slots=True)
class Adapted:
    """A model that is trained by adapters, as it is sent: who has its base gets nothing but the adapters."""

    base: Any
    """Ray reference to the base's ``Weights``."""
    base_name: str
    """The same for the same base alone."""
    adapters: Any
    """Ray reference to ``Adapters``."""


class Merged(Weights):
    """Weights of a plain model that does the same as ``base`` with ``adapters``; each is made when it is asked for."""

    def __init__(self, base: Weights, adapters: Adapters, *, all: bool) -> None:
        """``all``: what stays as it is in the base, too. Otherwise only weights in modules of which one is changed, for
        engines that hold several of a module's weights in one matrix and take all of it or nothing."""
        names = [name.removesuffix(A) for name in adapters.factors if name.endswith(A)]
        modules = {_above(name) for name in names}
        kept = [name for name in base if all or _above(_above(name)) in modules]
        self._set([(name, *base.kind(name)) for name in kept], [base.content(name) for name in kept])
        self._adapters, self._changed = adapters, {f"{name}.weight": name for name in names}

    def content(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, flat."""
        return _flat_bytes(self[name])

    def __getitem__(self, name: str) -> Tensor:
        weight, adapter = super().__getitem__(name), self._changed.get(name)
        if adapter is None:
            return weight
        merge: Tensor = merged(
            weight, self._adapters.factors[adapter + A], self._adapters.factors[adapter + B], self._adapters.scale
        )
        return merge


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _unpickled(kinds: list[tuple[str, str, Shape]], contents: list[NDArray[np.uint8]]) -> Weights:
    weights = Weights.__new__(Weights)
    weights._set(kinds, contents)
    return weights


def _flat_bytes(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def read(flat: Tensor, dtype: str, shape: Shape) -> Tensor:
    """The tensor whose bytes ``flat`` (uint8) are; it looks into them."""
    return flat.view(getattr(torch, dtype)).view(shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its bucket."""

    name: str
    dtype: str
    shape: Shape
    start: int
    """In bytes."""

    @property
    def end(self) -> int:
        return self.start + prod(self.shape) * getattr(torch, self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together."""

    places: tuple[Place, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.places[-1].end

    def fill(self, target: NDArray[np.uint8], weights: Weights) -> None:
        """Write the bucket's tensors to ``target``, of at least its size."""
        for place in self.places:
            target[place.start : place.end] = weights.content(place.name)

    def tensors(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of a bucket whose bytes ``flat`` (uint8) begins with; they look into it."""
        for place in self.places:
            yield place.name, read(flat[place.start : place.end], place.dtype, place.shape)

    def plain(self) -> list[tuple[Any, ...]]:
        """Of plain values, for channels that carry nothing else: the fields of each place."""
        return [dataclasses.astuple(place) for place in self.places]

    @classmethod
    def of_plain(cls, places: Iterable[Sequence[Any]]) -> "Bucket":
        """What ``plain`` said; a channel may have made lists of its tuples."""
        return cls(tuple(Place(name, dtype, tuple(shape), start) for name, dtype, shape, start in places))


def _aligned(end: int) -> int:
    return -(-end // ALIGNMENT) * ALIGNMENT


def laid_out(kinds: Mapping[str, tuple[str, Shape]]) -> Iterator[Place]:
    """Places for tensors of these dtypes and shapes, one after the other."""
    end = 0
    for name, (dtype, shape) in kinds.items():
        place = Place(name, dtype, shape, _aligned(end))
        yield place
        end = place.end


def buckets_of(weights: Weights, most_bytes: int) -> list[Bucket]:
    """Cut ``weights`` into buckets of at most ``most_bytes``, in their order; a tensor that is larger has its own."""
    buckets: list[Bucket] = []
    places: list[Place] = []
    for name in weights:
        start = _aligned(places[-1].end) if places else 0
        place = Place(name, *weights.kind(name), start)
        if places and place.end > most_bytes:
            buckets.append(Bucket(tuple(places)))
            places, place = [], Place(name, *weights.kind(name), 0)
        places.append(place)
    return [*buckets, Bucket(tuple(places))] if places else buckets
