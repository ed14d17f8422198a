"""Which settings of a model's config learner and engine compute in the same way; all others are refused by name.

Both read the same ``config.json`` independently. Where they interpret a setting differently, nothing fails: log-probs
differ, and importance weights with them. This module checks what the config alone tells;
``learner/probe.py`` compares values on top of it, and ``rollout/parity.py`` compares learner and engine when a run
starts.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.models.shape import read_config

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope", "proportional")
"""Rotary positions that do not depend on what else is computed. ``longrope`` does above its first length."""
MULTIPLIED_LOGITS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "dim_model_base")
"""Settings by which models multiply or divide logits or what the head reads."""

TAKEN_FOR_GRANTED: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_weights": True},
    "mixtral": {"hidden_act": "silu"},
    "gemma": {"attention_bias": False, "hidden_act": "gelu_pytorch_tanh"},
    "olmoe": {
        "clip_qkv": None, "hidden_act": "silu", "attention_bias": False, "norm_topk_prob": False, "rms_norm_eps": 1e-5,
    },
    "ernie4_5": {"use_bias": False},
    "qwen2_moe": {"qkv_bias": True},
}  # fmt: skip
"""By type of model: settings that transformers reads and vLLM does not, with what vLLM computes in any case (found by
comparing which settings the source files of both name, vLLM 0.32 and transformers 5.19)."""
ALL_OR_NO_WINDOWS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Types of models in which transformers has windows in some layers, and vLLM in all or none."""


def check_config(config: Any, longest: int | None = None) -> None:
    """Refuse settings that learner and engine would take differently.

    Args:
        config: of transformers.
        longest: tokens of the longest sequence that the engine may be given; None: unknown.

    Raises:
        UserError: a setting is not known here, by its name.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"models with a 'quantization_config' ({config.model_type}) are not supported: weights are sent to engines "
            "as they are trained; take the model that was not quantised"
        )
    config = config.get_text_config()
    kind = config.model_type
    for name in MULTIPLIED_LOGITS:
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise UserError(f"models that set '{name}' ({kind}) are not supported")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise UserError(f"models that set 'attn_logit_softcapping' ({kind}) are not supported")
    if getattr(config, "use_bidirectional_attention", None):
        raise UserError(f"models that set 'use_bidirectional_attention' ({kind}) are not supported")
    mixers = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if mixers:
        raise UserError(f"models with layers of type {', '.join(sorted(mixers))} are not supported")
    for name, value in TAKEN_FOR_GRANTED.get(kind, {}).items():
        if (actual := getattr(config, name, value)) != value:
            raise UserError(
                f"models of type {kind} with '{name}' {actual!r} are not supported: vLLM computes {value!r}"
            )
    kinds = set(getattr(config, "layer_types", None) or ())
    if kind in ALL_OR_NO_WINDOWS and config.sliding_window and kinds != {"sliding_attention"}:
        raise UserError(
            f"models of type {kind} with 'sliding_window' in some layers only are not supported: vLLM has it in all or "
            "in none"
        )
    for rope in ropes(config):
        rope_type = rope.get("rope_type", "default")
        # With 'alpha' the frequencies are fixed. With 'factor' transformers recomputes them for each length and
        # vLLM once, for the longest.
        if rope_type not in ROPE_TYPES and not (rope_type == "dynamic" and rope.get("alpha")):
            raise UserError(
                f"models with the rotary positions '{rope_type}' ({kind}) are not supported: learner and engine would "
                f"compute them differently; known: {', '.join(ROPE_TYPES)}"
            )
    first = longest_short(config)
    if first is not None and longest is not None and longest > first:
        raise UserError(
            f"models with the rotary positions 'longrope' ({kind}) are supported up to their first {first} tokens, "
            f"from where on others apply: set engine.max_model_len to at most {first}, and not {longest}"
        )


def ropes(config: Any) -> Iterator[dict[str, Any]]:
    """Settings of rotary positions: one for all layers, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [value for value in parameters.values() if isinstance(value, dict)]
    yield from kinds or ([parameters] if parameters else [])


def longest_short(config: Any) -> int | None:
    """Up to how many tokens the positions of a sequence do not depend on its length; None: always.

    Above ``original_max_position_embeddings``, ``longrope`` (Ding et al. 2024, arXiv 2402.13753) takes other factors:
    transformers for the longest sequence of a batch, vLLM for all where ``max_model_len`` is larger.
    """
    lengths = [
        int(rope["original_max_position_embeddings"])
        for rope in ropes(config.get_text_config())
        if rope.get("rope_type") == "longrope"
    ]
    return min(lengths, default=None)


def check_model_folder(folder: Path, longest: int) -> None:
    """``check_config`` of the model in ``folder``, before anything is started.

    Raises:
        UserError: as ``check_config``, or transformers does not know this kind of model.
    """
    config = read_config(folder)
    try:
        check_config(config, longest)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
