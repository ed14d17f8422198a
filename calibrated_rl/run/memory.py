"""Estimates the memory of a run on CPU from its models, before anything starts.

The numbers for processes and activations were measured on Linux with Llama-shaped models of 1 M and 135 M
parameters; for the latter the estimate was within 2 % of the learner's peak. It is meant to
refuse runs that would be killed half-way, not to fill a machine to the last byte.
"""

import os
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import psutil

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import ModelConfig
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.head import chunk_width
from calibrated_rl.learner.slots import CRITIC, POLICY, PROXY, SIMULATOR
from calibrated_rl.models.shape import ModelShape, shape_of
from calibrated_rl.run.turn_value import frozen_value_models, uses_critic
from calibrated_rl.settings.ranges import listed

GIB = 2**30
ENGINE_PROCESSES = int(1.25 * GIB)
"""A replica's two processes, the actor and vLLM's engine core, without weights and KV cache."""
ENGINE_IN_THREAD = int(0.7 * GIB)
"""The same where the engine is a thread of the actor's process."""
RANK_OF_AN_ENGINE = int(0.6 * GIB)
"""A process of vLLM for one rank of a replica that has several, without weights and KV cache."""
RANK_PROCESS = int(0.6 * GIB)
"""A learner rank without a model."""
RAY_AND_DRIVER = int(0.8 * GIB)
"""Ray's own processes, the replay store, and the growth of the driver."""

LARGEST_CACHE = GIB
"""What is given to many dialogues whose number nobody has said."""

Needs = dict[str, dict[str, int]]
"""Bytes by part of the system, and within it by purpose."""


def engine_needs(engine: EngineConfig, model: ModelShape, replicas: int = 1) -> dict[str, int]:
    """Bytes of the replicas of one side."""
    bucket = max(engine.weight_bucket_mib * 2**20, model.vocabulary * model.hidden * 4)
    ranks = engine.tensor_parallel
    processes = ENGINE_IN_THREAD if engine.in_thread else ENGINE_PROCESSES
    return {
        "weights": replicas * model.parameters * _bytes(engine.dtype),
        "KV cache": replicas * ranks * engine.kv_cache_mib * 2**20,
        "new weights": replicas * 2 * min(bucket, model.parameters * 4),
        "processes": replicas * (processes + (ranks * RANK_OF_AN_ENGINE if ranks > 1 else 0)),
    }


def _adam_bytes(learner: LearnerConfig) -> int:
    """Of one parameter, beside the weight in the model's own dtype."""
    return 8 if learner.dtype == "float32" else 12


def adapters_only(config: RunConfig) -> set[str]:
    """The models that are trained by adapters alone, at the start and in calibration, too."""
    fits = {POLICY: [config.policy.warm_start], SIMULATOR: [config.simulator.warm_start, config.calibration.sft]}
    fits[PROXY] = [config.proxy.sft]
    return {name for name in config.learner.lora if all(fit.adapters or not fit.epochs for fit in fits[name])}


def learner_needs(
    learner: LearnerConfig,
    policy: ModelShape,
    simulator: ModelShape | None,
    proxy: ModelShape | None = None,
    lora_models: Set[str] = frozenset(),
    value_models: int = 0,
    critic: bool = False,
) -> dict[str, int]:
    """Bytes of all ranks: every model with AdamW, a ``critic`` too; frozen copies of the policy, one and
    ``value_models`` for values of turns; one micro-batch. Of the models in ``lora_models``, which are trained by
    adapters alone, only the weights: the adapters' few percent are neglected.

    AdamW keeps two float32 moments, and under bfloat16 float32 master weights; ZeRO keeps one copy for all
    ranks of the state (from stage 1), the gradients (2) and the weights (3). Gradients in bfloat16 are summed over
    micro-batches in float32.
    """
    element, ranks = _bytes(learner.dtype), learner.ranks

    def copies(sharded_from: int) -> int:
        return 1 if learner.zero_stage >= sharded_from else ranks

    state = _adam_bytes(learner)
    trained = element * copies(2) + state * copies(1)
    sides = {POLICY: policy, SIMULATOR: simulator, PROXY: proxy}
    models = {name: shape for name, shape in sides.items() if shape is not None}
    if critic:
        models[CRITIC] = policy
        lora_models = lora_models | ({CRITIC} if POLICY in learner.lora else set())
    full_models = [shape.parameters for name, shape in models.items() if name not in lora_models]
    return {
        "models and optimizers": sum(
            shape.parameters * (element * copies(3) + (0 if name in lora_models else trained))
            for name, shape in models.items()
        ),
        "frozen policy": ranks * policy.parameters * element,
        **({"values of turns": ranks * value_models * policy.parameters * element} if value_models else {}),
        "sums of gradients": (0 if learner.dtype == "float32" else 4) * copies(2) * max(full_models, default=0),
        "micro-batch": ranks * max(activations(learner, shape) for shape in models.values()),
        "processes": ranks * RANK_PROCESS,
    }


def activations(learner: LearnerConfig, model: ModelShape) -> int:
    """Bytes that one rank's full micro-batch keeps for its backward pass.

    A layer keeps about ten vectors of the hidden size, five of the intermediate size and three of the keys'
    for each token; with gradient checkpointing only its input, and one layer at a time is recomputed. Logits exist
    for one chunk of the vocabulary, in at most three float32 copies. The gradients of the embedding and of the
    vocabulary projection exist a second time while they are accumulated.
    """
    tokens, element = learner.micro_batch_tokens, _bytes(learner.dtype)
    layer = (10 * model.hidden + 5 * model.intermediate + 3 * model.keys) * tokens * element
    layer_input = model.hidden * tokens * element
    layers = layer + model.layers * layer_input if learner.gradient_checkpointing else model.layers * layer
    logits = 3 * tokens * chunk_width(tokens, model.vocabulary) * 4
    return layers + logits + 2 * model.vocabulary * model.hidden * element


def memory_needs(
    config: RunConfig, policy: ModelShape, simulator: ModelShape | None, proxy: ModelShape | None = None
) -> Needs:
    """What a run needs on one machine without a GPU; ``simulator``: None for one behind an endpoint."""
    models = [shape for shape in (policy, simulator, proxy) if shape is not None]
    # The latest weights of each engine stay with Ray for replicas that restart; new ones are added to them, twice
    # while a replica reads its copy in shared memory.
    published = sum(model.parameters for model in models) + 2 * max(model.parameters for model in models)
    engines: Needs = {
        "policy engine": engine_needs(config.policy.engine, policy, config.policy.replica_bounds[1]),
    }
    if simulator:
        replicas = config.simulator.replica_bounds[1]
        engines["simulator engine"] = engine_needs(config.simulator.engine, simulator, replicas)
    if proxy:
        engines["proxy engine"] = engine_needs(config.proxy.engine, proxy)
    if config.training.checkpoint_every:
        # A copy of the policy's state, while it is written beside training.
        bytes_per_parameter = _bytes(config.learner.dtype) + (
            0 if POLICY in config.learner.lora else _adam_bytes(config.learner)
        )
        engines["checkpoint"] = {"copy": policy.parameters * bytes_per_parameter}
    return engines | {
        "learner": learner_needs(
            config.learner,
            policy,
            simulator,
            proxy,
            adapters_only(config),
            frozen_value_models(config),
            uses_critic(config),
        ),
        "published weights": {"weights": published * _bytes(config.learner.dtype)},
        "Ray and driver": {"processes": RAY_AND_DRIVER},
    }


def dialogue_bytes(engine: EngineConfig, model: ModelShape) -> int:
    """Keys and values of a dialogue of the maximum length, on each rank of a replica: ranks share the key heads, and
    where there are fewer heads than ranks, several have the same one."""
    keys = model.keys // min(engine.tensor_parallel, model.key_heads)
    return 2 * model.layers * keys * _bytes(engine.dtype) * engine.max_model_len


def with_cache(side: ModelConfig, model: Path, dialogues: int = 1) -> ModelConfig:
    """``side`` with a KV cache for so many dialogues of the maximum length, but at most ``LARGEST_CACHE``, where the
    size is left to the program and no learner is there to be measured first.

    Args:
        model: the folder of its model.
    """
    if side.engine.kv_cache_mib:
        return side
    dialogue = dialogue_bytes(side.engine, shape_of(model))
    cache = max(dialogue, min(dialogues * dialogue, LARGEST_CACHE))
    return replace(side, engine=replace(side.engine, kv_cache_mib=max(64, 1 + cache // 2**20)))


def check_cache(role: str, engine: EngineConfig, model: ModelShape) -> None:
    """Refuse a KV cache that is too small for one dialogue of the maximum length.

    Raises:
        UserError: names the key and what is needed.
    """
    dialogue = dialogue_bytes(engine, model)
    of_ranks = f", of which each of {engine.tensor_parallel} ranks has its part" if engine.tensor_parallel > 1 else ""
    if engine.kv_cache_mib and engine.kv_cache_mib * 2**20 < dialogue:
        raise UserError(
            f"{role}.engine.kv_cache_mib is {engine.kv_cache_mib}: one dialogue of max_model_len "
            f"{engine.max_model_len} takes {-(-dialogue // 2**20)}{of_ranks}, and many run at once"
        )


def check_tensor_parallel(role: str, engine: EngineConfig, model: ModelShape) -> None:
    """Refuse a number of ranks that the model's heads cannot be shared out to.

    Raises:
        UserError: names the key and what is possible.
    """
    ranks, heads, keys = engine.tensor_parallel, model.heads, model.key_heads
    possible = [n for n in range(1, heads + 1) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
    if ranks not in possible:
        raise UserError(
            f"{role}.engine.tensor_parallel is {ranks}: the model has {heads} attention heads and {keys} key heads, of "
            f"which each rank gets as many; choose {listed(possible)}"
        )


def refuse_too_little(needs: Needs, available: int) -> None:
    """Refuse a run that needs more than ``available`` bytes.

    Raises:
        UserError: says what is needed for what, largest first, and what can be made smaller.
    """
    sizes = {name: sum(items.values()) for name, items in needs.items()}
    if sum(sizes.values()) <= available:
        return

    def listed(items: Mapping[str, int]) -> str:
        large = {name: size for name, size in items.items() if size >= GIB / 20}
        return ", ".join(f"{name} {large[name] / GIB:.1f}" for name in sorted(large, key=lambda name: -large[name]))

    detail = "; ".join(
        f"{name} {sizes[name] / GIB:.1f} ({listed(needs[name])})"
        for name in sorted(sizes, key=lambda name: -sizes[name])
        if sizes[name] >= GIB / 20
    )
    raise UserError(
        f"this run needs about {sum(sizes.values()) / GIB:.1f} GiB of memory, and {available / GIB:.1f} GiB are "
        f"available. In GiB: {detail}. What can be made smaller: policy.engine.kv_cache_mib, "
        "simulator.engine.kv_cache_mib, learner.micro_batch_tokens, the models"
    )


def check_memory(config: RunConfig, policy: Path, simulator: Path | None, proxy: Path | None = None) -> None:
    """Refuse a run whose engines and learner do not fit into this machine's memory, given its models' folders;
    ``simulator``: None for one behind an endpoint.

    Checks the sum only for parts that run on this machine's CPU: not on a cluster, and not with engines on a GPU.

    Raises:
        UserError: see ``refuse_too_little`` and ``check_cache``.
    """
    shapes = shape_of(policy), shape_of(simulator) if simulator else None, shape_of(proxy) if proxy else None
    for role, shape in zip(("policy", "simulator", "proxy"), shapes, strict=True):
        if shape is not None:
            check_tensor_parallel(role, getattr(config, role).engine, shape)
            check_cache(role, getattr(config, role).engine, shape)
    if "RAY_ADDRESS" in os.environ or config.policy.engine.num_gpus > 0 or config.simulator.engine.num_gpus > 0:
        return
    refuse_too_little(memory_needs(config, *shapes), psutil.virtual_memory().available)


def _bytes(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4
