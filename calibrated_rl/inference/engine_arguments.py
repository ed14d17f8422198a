"""How a vLLM engine is started: its arguments, the sizes of KV cache to try, its environment."""

import os
from typing import Any

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.runtime import third_party
from calibrated_rl.storage.files import COMPILED

ROLE = "CALIBRATED_RL_ROLE"
"""Environment variable of a replica's processes: what they serve; for whoever inspects a machine."""

KEPT_BYTES = 2**28
"""An engine's process on a CPU keeps freed memory in pieces of up to this size, and so much at the end of its heap."""


def engine_environment(config: EngineConfig, role: str) -> dict[str, str]:
    """Environment of a replica's process; vLLM reads it at import."""
    environment = {ROLE: role, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"} | third_party.engine_environment()
    environment["VLLM_CACHE_ROOT"] = os.environ.get("VLLM_CACHE_ROOT", f"{COMPILED}/vllm")
    if config.in_thread:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if config.num_gpus == 0:
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
            # Otherwise vLLM adds a worker process, whose waiting eats the few cores of a small machine.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "THP_MEM_ALLOC_ENABLE": "1",  # see learner/group.py
            # Packing a layer's new weights frees as much as it takes. By default that goes to the operating system and
            # returns in pages of 4 KiB, each of them cleared first, which takes longer than the packing.
            "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            "TORCHDYNAMO_DISABLE": "1",  # the first request with log-probs would compile for seconds
            "CUDA_VISIBLE_DEVICES": "",
        }
    return environment


def cache_sizes(config: EngineConfig) -> list[int]:
    """Sizes of the KV cache in MiB that an engine is tried with, one after the other."""
    assert config.kv_cache_mib, "the size of the KV cache has not been settled"
    smallest = config.least_kv_cache_mib or config.kv_cache_mib
    sizes = [config.kv_cache_mib]
    while sizes[-1] // 2 >= smallest:
        sizes.append(sizes[-1] // 2)
    return sizes


def engine_arguments(model: str, config: EngineConfig, seed: int, kv_cache_mib: int) -> Any:
    """vLLM's ``AsyncEngineArgs`` for the model in the folder ``model``, with a KV cache of ``kv_cache_mib``."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    from calibrated_rl.weight_sync import vllm_worker

    # On a GPU vLLM refuses to start where less than this share is free, though the cache's size is given.
    share = 0.9 * min(1, config.num_gpus) * kv_cache_mib / config.kv_cache_mib
    defaults: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True}
    # The CPU default of 128 tokens a block wastes most of a short dialogue's prefix cache; vLLM's attention on CPU
    # needs a multiple of 32.
    defaults |= {"gpu_memory_utilization": share} if config.num_gpus else {"block_size": 32}
    return AsyncEngineArgs(
        model=model,
        load_format="safetensors",
        generation_config="vllm",  # each request says how to sample, not a file beside the model
        trust_remote_code=False,
        dtype=config.dtype,  # type: ignore[arg-type]
        seed=seed,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        kv_cache_memory_bytes=kv_cache_mib * 2**20,
        enforce_eager=config.eager,
        tensor_parallel_size=config.tensor_parallel,
        distributed_executor_backend=config.executor,
        logprobs_mode="processed_logprobs",
        worker_extension_cls=f"{vllm_worker.__name__}.WorkerExtension",
        weight_transfer_config=WeightTransferConfig(backend=vllm_worker.BACKEND),
        **(defaults | config.args),
    )
