"""Importance correction from the engine that sampled to the learner before the update.

The two compute slightly different log-probs for the same weights (other kernels, bfloat16), and under
staleness they have different weights. ``w = π_old(token) / π_engine(token)`` corrects for it:

- ``truncate``: ``min(w, high)`` multiplies each token's loss (truncated importance sampling; Ionides 2008;
  for engine mismatch Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy training");
- ``mask``: tokens with ``w`` outside ``[low, high]`` are rejected, the rest keeps its weight (as in
  IcePop, Ling team 2025). Rejection takes tokens out of the mask before the normalisers are counted, so the
  loss stays a mean over the tokens that are left;
- ``none``: no correction (``w`` is still logged).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from calibrated_rl.settings.fields import Range, check_settings


class Correction:
    """Weights and rejection of tokens by their importance ratio."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        mode: Literal["truncate", "mask", "none"] = "truncate"
        """``truncate``, ``mask`` or ``none``; not `off`, which YAML reads as false."""
        low: Annotated[float, Range(at_least=0, below=1)] = 0.5
        """``mask`` only: smaller ratios are rejected."""
        high: Annotated[float, Range(at_least=1)] = 2.0
        """``truncate``: larger ratios are cut to this; ``mask``: they are rejected."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "loss_config.correction")
        self.config = config

    def without_effect(self, settings: Mapping[str, Any]) -> list[str]:
        """Bounds in ``settings`` that the mode does not use, each with the reason."""
        mode = self.config.mode
        unused = {"none": ("low", "high"), "truncate": ("low",), "mask": ()}[mode]
        return [f"correction.{key} does nothing where correction.mode is {mode}" for key in unused if key in settings]

    @property
    def rejects(self) -> bool:
        return self.config.mode == "mask"

    def accepted(self, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        """[N] bool: which tokens stay in the mask."""
        if not self.rejects:
            return torch.ones_like(old_logprobs, dtype=torch.bool)
        ratio = torch.exp(old_logprobs - sampler_logprobs)
        return (ratio >= self.config.low) & (ratio <= self.config.high)

    def weights(self, old_logprobs: Tensor, sampler_logprobs: Tensor) -> Tensor:
        """[N] importance weights, without gradient."""
        if self.config.mode == "none":
            return torch.ones_like(old_logprobs)
        ratio = torch.exp(old_logprobs - sampler_logprobs).detach()
        return ratio.clamp(max=self.config.high) if self.config.mode == "truncate" else ratio
