"""Tiny random models of several architectures for tests of the learner."""

from typing import Any

import torch

VOCABULARY = 96


def make_model(tied: bool = True) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied,
        initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def make_gemma() -> Any:
    """Windows in every other layer, a soft cap on the logits, normalised queries and keys."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=256, sliding_window=8, initializer_range=0.2,
        layer_types=["sliding_attention", "full_attention"], final_logit_softcapping=5.0, query_pre_attn_scalar=8,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


def make_hybrid() -> Any:
    """A convolution, which mixes neighbours whatever attention is told."""
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    return Lfm2ForCausalLM(config)
