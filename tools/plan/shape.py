"""The memory of a model on GPUs from its shape alone: what a learner's rank takes by ZeRO stage, and an engine's rank.

The learner's figures are those that refuse runs on a CPU (``calibrated_rl/run/memory.py``), divided by ranks. They
contain what this learner holds: policy and simulator with their optimizers, and the frozen policy that a run starts
from, whole on every rank. Neither DeepSpeed's buckets nor what CUDA itself takes is counted, nor, under ZeRO 3, the one
layer that is gathered at a time; ``RESERVED_SHARE`` of the GPU is kept for these.

Per parameter and rank of ``n``, under bfloat16 with float32 master weights: 2 bytes of weights (ZeRO 3: ``2 / n``), 2
of gradients and 4 of their float32 sums (from ZeRO 2: ``/ n``), 12 of optimizer state (from ZeRO 1: ``/ n``). That is
``2 + 18 / n`` at ZeRO 2, as DeepSpeed's ``estimate_zero2_model_states_mem_needs`` has it without offloading; at ZeRO 3
``20 / n``, where its ``estimate_zero3_model_states_mem_needs`` has ``18 / n`` (without the gradients in bfloat16) and 4
bytes for each parameter of the largest layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig, LoRAConfig
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.models.shape import ModelShape, shape_without_weights
from calibrated_rl.run.memory import GIB, dialogue_bytes, engine_needs, learner_needs
from calibrated_rl.run.memory_plan import GPU_ENGINE, RESERVED_SHARE
from calibrated_rl.storage.files import write_json

STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)
KNOWN = {
    "7b": {
        "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "70b": {
        "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Shapes by name, as ``config.json`` has them: those of Qwen2.5-7B and Llama-3-70B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerRow:
    """What each GPU of a learner takes, in bytes."""

    stage: int
    lora: bool
    models: int
    """Weights, gradients and optimizer states of policy and simulator."""
    frozen: int
    """The policy that a run starts from."""
    micro_batch: int
    """What the backward pass of one micro-batch keeps."""

    @property
    def total(self) -> int:
        return self.models + self.frozen + self.micro_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """What each GPU of a replica takes, in bytes."""

    tensor_parallel: int
    weights: int
    cache: int
    """What is left for the KV cache; below 0: the weights do not fit."""
    dialogue: int
    """Keys and values of a dialogue of the maximum length."""

    @property
    def dialogues(self) -> int:
        """How many of them fit at once, each at its maximum length."""
        return max(0, self.cache // self.dialogue)


def read_shape(name: str, folder: Path) -> ModelShape:
    """The shape called ``name``, or of the ``config.json`` at that path.

    Args:
        folder: for files that transformers reads.

    Raises:
        UserError: there is no such file, or it is no config of a model.
    """
    if name.lower() not in KNOWN:
        return shape_without_weights(Path(name))
    write_json(folder / "config.json", KNOWN[name.lower()])
    return shape_without_weights(folder)


def usable(gpu_bytes: int) -> int:
    """Bytes of a GPU that are planned with."""
    return int((1 - RESERVED_SHARE) * gpu_bytes)


def learner_rows(learner: LearnerConfig, model: ModelShape, gpus: int) -> Iterator[LearnerRow]:
    """A rank on each of ``gpus``, for every ZeRO stage, all weights trained or adapters alone."""
    for lora in (False, True):
        for stage in STAGES:
            adapters = {side: learner.lora.get(side, LoRAConfig()) for side in (POLICY, SIMULATOR)}
            layout = replace(
                learner, ranks=gpus, zero_stage=stage, compile=learner.compile and stage < 3,
                lora=adapters if lora else {},
            )  # fmt: skip
            needs = learner_needs(layout, model, model, lora_models=set(layout.lora))
            yield LearnerRow(
                stage=stage, lora=lora, models=(needs["models and optimizers"] + needs["sums of gradients"]) // gpus,
                frozen=needs["frozen policy"] // gpus, micro_batch=needs["micro-batch"] // gpus,
            )  # fmt: skip


def engine_rows(engine: EngineConfig, model: ModelShape, gpus: int, gpu_bytes: int) -> Iterator[EngineRow]:
    """A replica over 1, 2, 4, ... of ``gpus``, as far as the model's heads can be shared out."""
    ranks = 1
    while ranks <= gpus and model.heads % ranks == 0:
        spread = replace(engine, tensor_parallel=ranks, num_gpus=1)
        weights = engine_needs(spread, model)["weights"] // ranks
        yield EngineRow(
            tensor_parallel=ranks, weights=weights, cache=usable(gpu_bytes) - weights - GPU_ENGINE,
            dialogue=dialogue_bytes(spread, model),
        )  # fmt: skip
        ranks *= 2


def describe(config: RunConfig, name: str, model: ModelShape, gpus: int, gpu_bytes: int) -> str:
    """The whole plan as text."""
    learner, engine = config.learner, config.policy.engine
    room = usable(gpu_bytes)
    checkpointing = "with" if learner.gradient_checkpointing else "without"
    held = model.parameters * (2 if learner.dtype == "bfloat16" else 4)
    learner_head = ("trained", "ZeRO", "models, optimizers", "frozen policy", "micro-batch", "sum", "")
    learner_table = [
        (
            "adapters" if row.lora else "all weights", row.stage,
            *_gib(row.models, row.frozen, row.micro_batch, row.total), "fits" if row.total <= room else "too much",
        )
        for row in learner_rows(learner, model, gpus)
    ]  # fmt: skip
    engine_head = ("tensor_parallel", "weights", "left for KV cache", "a dialogue, MiB", "dialogues at once")
    engine_table = [
        (
            row.tensor_parallel, *_gib(row.weights, row.cache), f"{row.dialogue / 2**20:.1f}",
            row.dialogues or "does not fit",
        )
        for row in engine_rows(engine, model, gpus, gpu_bytes)
    ]  # fmt: skip
    lines = [
        f"{name}: {model.parameters / 1e9:.2f} B parameters, {model.layers} layers of {model.hidden}, "
        f"{model.heads} heads, {model.key_heads} key heads, {model.vocabulary} tokens",
        f"{gpus} GPUs of {gpu_bytes / GIB:.0f} GiB, of which {room / GIB:.1f} are planned with; GiB on each:",
        "",
        f"learner on all {gpus}, policy and simulator of this shape, {learner.dtype}, micro-batches of "
        f"{learner.micro_batch_tokens} tokens, {checkpointing} checkpointing:",
        _table(learner_head, learner_table),
        "",
        f"a replica, {engine.dtype}, dialogues of at most {engine.max_model_len} tokens:",
        _table(engine_head, engine_table),
        "",
        f"while the learner loads, each of its ranks reads a whole model: {held / GIB:.0f} GiB of its machine's "
        f"memory, {gpus * held / GIB:.0f} for {gpus} ranks on one machine",
    ]
    return "\n".join(lines)


def _gib(*sizes: int) -> list[str]:
    return [f"{size / GIB:.1f}" for size in sizes]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    from tools.plan.text import grid

    return grid([head, *([str(cell) for cell in row] for row in rows)])
