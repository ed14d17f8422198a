"""LoRA updates: replicas that have the base of a model trained by adapters get nothing but the adapters.

The replica adds them to the base, as the learner does (``merging.py``), since an engine fuses several of a module's
matrices into one and serves merged weights faster than adapters.
"""

import itertools
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from calibrated_rl.weight_sync.base import LearnerModel, ObjectRef, Receiver, Transport, WeightUpdate, WorkerMessage
from calibrated_rl.weight_sync.merging import merged_weight
from calibrated_rl.weight_sync.tensors import Weights, flat_bytes

A, B = ".lora_A", ".lora_B"
"""How the names of an adapter's two matrices end, which are parameters of its linear map; see ``learner/lora.py``."""


@dataclass(frozen=True, slots=True)
class LoRAWeights:
    """The trained parameters of a model that is trained by low-rank adapters."""

    matrices: Weights
    """Both of each adapter, ``A`` [rank, in] and ``B`` [out, rank], float32, under their Hugging Face names."""
    scale: float
    """Of their product ``B A``."""


class MergedWeights(Weights):
    """Weights of a plain model that computes the same as ``base`` with adapters; each is computed on access."""

    def __init__(self, base: Weights, lora: LoRAWeights, *, with_unchanged: bool) -> None:
        """``with_unchanged``: unchanged weights of the base, too. Otherwise only weights in modules of which one is
        changed, for engines that fuse several of a module's weights into one matrix and need all of it or nothing."""
        names = [name.removesuffix(A) for name in lora.matrices if name.endswith(A)]
        modules = {_above(name) for name in names}
        included_names = [name for name in base if with_unchanged or _above(_above(name)) in modules]
        self._set(
            [(name, *base.kind(name)) for name in included_names], [base.content(name) for name in included_names]
        )
        self._lora, self._changed = lora, {f"{name}.weight": name for name in names}

    def content(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, flat."""
        return flat_bytes(self[name])

    def __getitem__(self, name: str) -> Tensor:
        weight, adapter = super().__getitem__(name), self._changed.get(name)
        if adapter is None:
            return weight
        merge: Tensor = merged_weight(
            weight, self._lora.matrices[adapter + A], self._lora.matrices[adapter + B], self._lora.scale
        )
        return merge


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def with_adapters_merged(
    weights: Mapping[str, Tensor], matrices: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """All ``weights`` of a model, with the adapters of these ``matrices`` merged into them."""
    return dict(MergedWeights(Weights(weights), LoRAWeights(Weights(matrices), scale), with_unchanged=True))


def lora_weights(model: LearnerModel) -> LoRAWeights:
    """The learner's end: the adapters of ``model``, on rank 0; to be pickled before its next step, as the full
    weights."""
    assert model.lora_scale is not None, "the model has no adapters"
    return LoRAWeights(Weights(model.adapters(copy=False)), model.lora_scale)


@dataclass(frozen=True, slots=True)
class LoRABase:
    """The base that adapters are added to."""

    name: str
    """Identifies the base."""
    weights: ObjectRef[Weights]


class LoRABases:
    """The driver's memory of the bases that it has put into the store."""

    def __init__(self) -> None:
        self._bases: dict[str, LoRABase] = {}
        self._shipped = itertools.count()

    def get(self, model: str, ship: Callable[[], ObjectRef[Weights]]) -> LoRABase:
        """The base of the learner's ``model``; shipped by ``ship`` if that has not been done since it was loaded."""
        if model not in self._bases:
            self._bases[model] = LoRABase(f"{model}-{next(self._shipped)}", ship())
        return self._bases[model]

    def forget(self, model: str | None = None) -> None:
        """``model`` (None: every one) has been reloaded or removed."""
        if model is None:
            self._bases.clear()
        else:
            self._bases.pop(model, None)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoRAUpdate(WeightUpdate):
    """The adapters of a model, and its base for replicas that do not have it."""

    transport: ClassVar[Transport] = Transport.LORA

    base: LoRABase
    lora: ObjectRef[LoRAWeights]

    async def receive(self, receiver: Receiver) -> AsyncGenerator[WorkerMessage]:
        lora, base = await self.lora, await self.base.weights
        weights = MergedWeights(base, lora, with_unchanged=self.base.name != receiver.lora_base)
        receiver.lora_base = self.base.name
        return receiver.bucket_messages(weights)
