"""A Qwen2-shaped model with random weights, for rows whose time does not depend on the model's output."""

from dataclasses import dataclass
from pathlib import Path

import torch

from calibrated_rl.settings.fields import Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeModel:
    """Its sizes; by default those of Qwen2-1.5B."""

    vocabulary: Positive = 151936
    hidden: Positive = 1536
    intermediate: Positive = 8960
    layers: Positive = 28
    heads: Positive = 12
    key_heads: Positive = 2
    tied: bool = True

    def save_model(self, folder: Path, dtype: str) -> None:
        """Write config and weights; no tokenizer."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        shape = Qwen2Config(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.key_heads,
            tie_word_embeddings=self.tied,
        )  # fmt: skip
        Qwen2ForCausalLM(shape).to(getattr(torch, dtype)).save_pretrained(folder)
