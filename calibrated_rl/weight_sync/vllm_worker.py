"""The last hop of every transport, inside a running vLLM worker: one path for policy and simulator, CPU and GPU.

vLLM imports this module in its worker process because ``worker_extension_cls`` names it; importing it registers the
backend ``calibrated_rl`` with vLLM's own weight transfer interface, so it is the one module here that needs vLLM at
import. Messages say where the tensors are, since vLLM's control channel cannot carry them: a ``WorkerReader`` of the
transport reads them there.

On CPU, vLLM packs the weights of linear layers for its matrix kernels. Its layerwise reload repacks each
layer that receives weights; a *tied* LM head receives none of its own and would keep the old packed copy
without any error, so output layers are packed here after each update: with the packed copy of the input layer, which
vLLM packs although nothing multiplies by it, where they share its weights.

How weights are packed depends on the number of OpenMP threads, and vLLM keeps the kernels made for how they were packed
first: what is packed with another number is multiplied wrongly, without any error. So updates are packed with as many
threads as the first weights, whatever has changed that meanwhile (numba does, which speculative decoding uses).
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from calibrated_rl.weight_sync.base import ReaderName, WorkerReader
from calibrated_rl.weight_sync.buckets import BucketReader
from calibrated_rl.weight_sync.shared_memory import SharedMemoryReader

BACKEND = "calibrated_rl"


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Empty: this transport needs no set-up."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """A ``WorkerMessage``, as vLLM passes it on."""

    reader: str
    content: dict[str, Any]


class WorkerWeights(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads weights into the worker's model."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._readers: dict[str, WorkerReader] = {
            ReaderName.BUCKET: BucketReader(), ReaderName.SHARED_MEMORY: SharedMemoryReader(),
        }  # fmt: skip
        self._used: set[str] = set()
        """Names of the readers of the current update."""
        self._threads = torch.get_num_threads()

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Does nothing: this transport needs no set-up."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        self._used.clear()
        # vLLM replaces torch's own ``set_num_threads``.
        torch._C.set_num_threads(self._threads)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        reader = self._readers[update_info.reader]
        self._used.add(update_info.reader)
        self.model.load_weights(reader.read(update_info.content))
        if reader.reuses_memory:
            self._copy_waiting_tensors()

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        for name in self._used:
            self._readers[name].check()
        if self.device.type == "cpu":
            self._pack_output_layers()
        else:
            torch.cuda.synchronize(self.device)

    def shutdown(self) -> None:
        """Nothing to close."""

    def _copy_waiting_tensors(self) -> None:
        """Copy tensors that a layer keeps until it has all of its own: the next bucket is about to overwrite them."""
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in self.model.modules():
            for _, pending_load in get_layerwise_info(layer).loaded_weights:
                for name, value in pending_load.arguments.items():
                    if isinstance(value, torch.Tensor) and not value.is_meta:
                        pending_load.arguments[name] = value.clone()

    def _pack_output_layers(self) -> None:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

        layers = [module for module in self.model.modules() if isinstance(module, VocabParallelEmbedding)]
        packed = {
            module.weight.data_ptr(): module.cpu_linear
            for module in layers
            if not isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear")
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


WeightTransferEngineFactory.register_engine(BACKEND, WorkerWeights)
