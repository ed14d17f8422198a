"""``engine.args``: further arguments of vLLM, checked when a config is read, before anything starts.

The names are those of vLLM's own ``AsyncEngineArgs``. They are read out of its source file, which takes a fraction of
a second; importing vLLM would take ten, and configs are also read where it is not installed (vLLM then says what it
does not take when an engine starts). What would break the program's contracts is refused by name, each with its reason:

- what the program sets itself (``SET_HERE``), or what has no effect without vLLM's server (``OF_A_SERVER``);
- what gets in the way of new weights, which reach every engine, also a simulator's and a proxy's (``WEIGHTS``);
- for policy and simulator, whose samples are compared with the learner's probabilities of them: what changes the
  distribution that is sampled (``DISTRIBUTION``). A proxy only speaks.

Quantisation and a coarser KV cache are allowed under bfloat16. The engine's policy is then further from the learner's
than bfloat16 makes it: importance weights of the loss correct for that (``training.loss_config``), and the comparison
at the start of a run (``rollout/parity.py``) says how large the difference is and refuses one that is too large.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.settings.ranges import nearest, shown

CLASSES = ("EngineArgs", "AsyncEngineArgs")
"""vLLM's, whose annotated fields are the arguments."""
SOURCE = Path("engine", "arg_utils.py")
"""Where in the package they are."""

_MODEL = "learner and engine read one and the same folder, `model`, as it is"
_SIZE = "the size of the KV cache is `engine.kv_cache_mib`"
_WINDOW = "the queue of requests is the program's: `engine.max_num_seqs`, `replicas`"
_PARALLEL = "how many GPUs of one machine a replica is spread over is `engine.tensor_parallel`"
_REPLICAS = "copies of a model are `replicas`, each an engine of its own, which may join and leave"

SET_HERE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "model", "model_weights", "tokenizer", "tokenizer_mode", "tokenizer_revision", "skip_tokenizer_init",
            "revision", "code_revision", "hf_config_path", "config_format", "hf_overrides", "hf_token", "load_format",
            "download_dir", "model_class_overrides",
        ),
        _MODEL,
    ),
    "trust_remote_code": "it would run code that comes with a model",
    "dtype": "it is `engine.dtype`",
    "seed": "it follows from the run's seed",
    "max_model_len": "it is `engine.max_model_len`",
    "max_num_seqs": "it is `engine.max_num_seqs`",
    **dict.fromkeys(("kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"), _SIZE),
    **dict.fromkeys(("max_num_active_seqs", "max_num_queued_reqs", "max_num_queued_tokens"), _WINDOW),
    "enforce_eager": "it is `engine.eager`",
    **dict.fromkeys(
        (
            "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "nnodes", "node_rank",
            "master_addr", "master_port", "device_ids",
        ),
        _PARALLEL,
    ),
    **dict.fromkeys(("generation_config", "override_generation_config"), "each request says how it is sampled"),
    **dict.fromkeys(("runner", "convert", "pooler_config", "diffusion_config"), "engines generate, token by token"),
}  # fmt: skip
"""What the program sets itself, and what says so."""

OF_A_SERVER: Mapping[str, str] = dict.fromkeys(
    (
        "served_model_name", "reasoning_parser", "reasoning_parser_plugin", "reasoning_config",
        "structured_outputs_config", "io_processor_plugin", "enable_prompt_embeds", "tokens_only",
        "enable_sleep_mode", "scheduling_policy",
    ),
    "it is for requests that the program does not make",
)  # fmt: skip
"""Would be set and have no effect."""

WEIGHTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("worker_cls", "worker_extension_cls", "weight_transfer_config"),
        "new weights reach the engine through the program's own",
    ),
    "scheduler_cls": "an engine is paused for new weights through vLLM's own scheduler",
    **dict.fromkeys(
        ("kv_transfer_config", "kv_offloading_size", "kv_offloading_backend", "ec_transfer_config"),
        "keys and values that are kept outside the engine would outlive the weights that they were computed with",
    ),
    **dict.fromkeys(
        ("cpu_offload_gb", "cpu_offload_params", "offload_backend", "offload_group_size", "offload_num_in_group",
         "offload_prefetch_step", "offload_params"),
        "new weights do not reach layers that are kept in the machine's memory",
    ),
    **dict.fromkeys(
        ("enable_lora", "max_loras", "max_lora_rank", "default_mm_loras", "fully_sharded_loras", "max_cpu_loras",
         "lora_dtype", "lora_target_modules"),
        "adapters are `learner.lora`; engines get the weights with the adapters merged",
    ),
    **dict.fromkeys(
        ("enable_eplb", "eplb_config", "enable_elastic_ep"),
        "experts that vLLM moves between ranks do not get new weights",
    ),
}  # fmt: skip
"""What gets in the way of weight updates."""

DISTRIBUTION: Mapping[str, str] = {
    "logprobs_mode": "recorded log-probs must be those of the distribution that was sampled from, `processed_logprobs`",
    "logits_processors": "the learner cannot compute the probabilities of what they make of the logits",
    "watermark_config": "a watermark changes what is sampled, and the learner's probabilities do not include it",
    "kv_sharing_fast_prefill": "log-probs of prompts, which are compared with the learner's, would be wrong",
}
"""What makes the sampled distribution another one than the learner computes, or its log-probs unknown."""

ONLINE = (
    "online", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel", "int8_per_channel_weight_only", "nvfp4_per_token",
    "mxfp4", "mxfp8",
)  # fmt: skip
"""Quantisation that vLLM itself computes from unquantised weights, so also from new ones; ``fp8`` no longer is one."""


@functools.cache
def argument_types() -> Mapping[str, frozenset[str]] | None:
    """vLLM's arguments: name → the parts of its annotation, such as ``{"int", "None"}``. None: it is not installed."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / SOURCE).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in CLASSES]
    return {
        field.target.id: frozenset(part.strip() for part in ast.unparse(field.annotation).split("|"))
        for node in classes
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id[0] != "_"
    }


def problems_of_args(role: str, engine: EngineConfig) -> Iterator[tuple[str, str]]:
    """Arguments that ``role`` (policy, simulator or proxy) may not have, each with what is wrong with it."""
    types = argument_types()
    compared = role != "proxy"
    reasons = {**SET_HERE, **OF_A_SERVER, **WEIGHTS, **(DISTRIBUTION if compared else {})}
    for name, value in engine.args.items():
        reason = _REPLICAS if name.startswith("data_parallel_") else reasons.get(name)
        if reason is not None:
            yield name, f"cannot be set: {reason}"
        elif types is not None and name not in types:
            yield name, f"is no argument of vLLM's AsyncEngineArgs{nearest(name, types)}"
        elif types is not None and not _fits(value, types[name]):
            yield name, f"is {shown(value)}: vLLM wants {' or '.join(sorted(types[name]))}"
        elif (trouble := _coarser(name, value, engine, compared=compared)) is not None:
            yield name, trouble


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),),
    "dict[str, Any]": (Mapping,), "list[int]": (list,), "list[str]": (list,),
}  # fmt: skip


def _fits(value: Any, parts: frozenset[str]) -> bool:
    """Whether ``value`` is of one of these types; True for types of vLLM's own, which it checks itself."""
    if not parts <= _PLAIN.keys():
        return True
    kinds = tuple(kind for part in parts for kind in _PLAIN[part])
    return isinstance(value, kinds) and (not isinstance(value, bool) or "bool" in parts)


def _coarser(name: str, value: Any, engine: EngineConfig, *, compared: bool) -> str | None:
    """What is wrong with an argument that stores weights or keys and values with fewer bits."""
    if name == "quantization" and value is not None and value not in ONLINE:
        return (
            f"is {shown(value)}, which is for weights that were quantised before; new weights arrive as the learner "
            f"has them, so vLLM must quantise them itself: choose {', '.join(ONLINE)}{nearest(value, ONLINE)}"
        )
    coarse = name == "quantization" and value is not None or name == "kv_cache_dtype" and value not in ("auto", None)
    if coarse and compared and engine.dtype == "float32":
        return (
            f"is {shown(value)}, and engine.dtype is float32, where learner and engine agree to 1e-4: set "
            "engine.dtype to bfloat16"
        )
    return None
