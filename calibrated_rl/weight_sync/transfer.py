"""Receives weights inside a running vLLM worker: one path for policy and simulator, CPU and GPU.

vLLM imports this module in its worker process because ``worker_extension_cls`` names it; importing it
registers the backend ``calibrated_rl`` with vLLM's own weight transfer interface. What arrives is a
*reference* to the tensors, since vLLM's control channel cannot carry them: memory that this process shares with its
replica, which holds a bucket of them at a time, or a block that it shares with the learner (``weights_block.py``).

On CPU, vLLM packs the weights of linear layers for its matrix kernels. Its layerwise reload repacks each
layer that receives weights; a *tied* LM head receives none of its own and would keep the old packed copy
without any error, so output layers are settled here after each update: with the packed copy of the input layer, which
vLLM packs although nothing multiplies by it, where they share its weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from calibrated_rl.weight_sync.block import OpenBlocks, WeightsInBlock
from calibrated_rl.weight_sync.weights import Bucket

BACKEND = "calibrated_rl"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Where weights lie; either ``path`` is set, and ``places``, or ``block``."""

    path: str | None = None
    """A file whose ``size`` bytes are memory shared with the replica; one bucket of the weights is in it."""
    size: int = 0
    places: list[tuple[str, str, list[int], int]] = field(default_factory=list)
    """The bucket's tensors, as ``Bucket.plain`` says them."""
    block: dict[str, Any] | None = None
    """The message of a ``WeightsInBlock``."""


class SharedWeights(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads weights from shared memory or a shared GPU into the worker's model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._mapped: dict[str, torch.Tensor] = {}
        """Memory shared with the replica, uint8, by its path: one to read from, another that is filled meanwhile."""
        self._blocks = OpenBlocks()
        self._block: WeightsInBlock | None = None
        """What is being read, until the update is finished."""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to agree on."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._block = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        if update_info.block is not None:
            self._block = WeightsInBlock.of_message(update_info.block)
            self.model.load_weights(self._blocks.read(self._block))
            return
        assert update_info.path is not None, "an update names no memory"
        self.model.load_weights(self._bucket(update_info, update_info.path))
        self._keep_what_waits()

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        if self._block is not None:
            self._blocks.check(self._block)
            self._block = None
        if self.device.type == "cpu":
            self._pack_output_layers()
        else:
            torch.cuda.synchronize(self.device)

    def shutdown(self) -> None:
        """Nothing to close."""

    def _bucket(self, info: UpdateInfo, path: str) -> Iterator[tuple[str, torch.Tensor]]:
        return Bucket.of_plain(info.places).tensors(self._shared(path, info.size))

    def _shared(self, path: str, size: int) -> torch.Tensor:
        """The shared memory, uint8 [``size``]; mapped once, until it grows."""
        if path not in self._mapped or len(self._mapped[path]) != size:
            self._mapped[path] = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        return self._mapped[path]

    def _keep_what_waits(self) -> None:
        """Copy tensors that a layer holds until it has all of its own: the next bucket is about to overwrite them."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in self.model.modules():
            for _, call in get_layerwise_info(layer).loaded_weights:
                for name, value in call.arguments.items():
                    if isinstance(value, torch.Tensor) and not value.is_meta:
                        call.arguments[name] = value.clone()

    def _pack_output_layers(self) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        layers = [each for each in self.model.modules() if isinstance(each, VocabParallelEmbedding)]
        packed = {
            each.weight.data_ptr(): each.cpu_linear
            for each in layers
            if not isinstance(each, ParallelLMHead) and hasattr(each, "cpu_linear")
        }
        for layer in layers:
            if isinstance(layer, ParallelLMHead) and hasattr(layer, "cpu_linear"):
                if layer.weight.data_ptr() in packed:
                    layer.cpu_linear = packed[layer.weight.data_ptr()]
                else:
                    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


class WorkerExtension:
    """Mixed into vLLM's worker; its module's import registers the backend."""

    def reseed(self, seed: int) -> None:
        """Set the random state that unseeded requests are sampled from."""
        torch.manual_seed(seed)


WeightTransferEngineFactory.register_engine(BACKEND, SharedWeights)
