"""Peak memory of log-probs, loss and backward pass over the vocabulary projection, against the full logits."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from calibrated_rl.learner.head import ScoringHead
from calibrated_rl.learner.losses.base import LossInputs, Totals
from calibrated_rl.learner.losses.grpo import GRPO
from calibrated_rl.settings.fields import Positive, Precision
from tools.bench.base import Row, at_most, require_device


class LossMemory:
    """GRPO with KL penalty and entropy bonus, from hidden states to their gradient and that of the weights."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        device: Literal["cpu", "cuda"] = "cpu"
        """``cpu`` or ``cuda``."""
        dtype: Precision = "float32"
        vocabulary: Positive = 49152
        size: Positive = 576
        """Of the hidden states. Both are those of SmolLM2-135M."""
        positions: list[Positive] = field(default_factory=lambda: [64, 512, 2048])
        """Scored tokens of a micro-batch; the worst case counts."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        require_device(config.device)
        bytes_by_count = {count: (self._peak(count), count * config.vocabulary * 4) for count in config.positions}
        worst = max(bytes_by_count, key=lambda count: bytes_by_count[count][0] / bytes_by_count[count][1])
        shares = ", ".join(
            f"{count}: {peak / logits_bytes:.3f}" for count, (peak, logits_bytes) in bytes_by_count.items()
        )
        return at_most(
            *bytes_by_count[worst], 0.1,
            f"bytes at the peak of log-probs, entropies, loss and backward pass ({config.dtype}, {config.vocabulary} "
            f"words, size {config.size}), beyond hidden states, weights and the weights' gradient, against float32 "
            f"logits of all positions; by number of positions {shares}; the worst one counts",
        )  # fmt: skip

    def _peak(self, count: int) -> int:
        config = self.config
        torch.manual_seed(0)
        device, dtype = torch.device(config.device), getattr(torch, config.dtype)
        linear = nn.Linear(config.size, config.vocabulary, bias=False, device=device, dtype=dtype)
        hidden_ND = torch.randn(count, config.size, device=device, dtype=dtype, requires_grad=True)
        targets_N = torch.randint(config.vocabulary, (count,), device=device)
        head, loss = ScoringHead(linear, None), GRPO(GRPO.Config(kl_coefficient=0.1, entropy_coefficient=0.01))

        def work() -> None:
            logprobs_N, entropies_N = head(hidden_ND, targets_N, 1.0, True)
            loss(_inputs(logprobs_N, entropies_N)).loss.backward()

        weight_bytes = linear.weight.numel() * linear.weight.element_size()
        return peak_bytes(work, device) - weight_bytes


def _inputs(logprobs_N: Tensor, entropies_N: Tensor) -> LossInputs:
    """One sequence."""
    old_logprobs_N, ones_N = logprobs_N.detach(), torch.ones_like(logprobs_N)
    return LossInputs(
        logprobs=logprobs_N, entropy=entropies_N, old_logprobs=old_logprobs_N, sampler_logprobs=old_logprobs_N,
        reference_logprobs=old_logprobs_N, advantages=ones_N, weights=ones_N,
        sequence=torch.zeros_like(ones_N, dtype=torch.int64), count=1,
        totals=Totals(tokens=len(ones_N), sequences=1, weight=float(len(ones_N))),
    )  # fmt: skip


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Peak bytes that torch has allocated during ``work``, beyond those before it; memory inside an operator counts,
    too."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated_before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - allocated_before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    allocated = peak = 0
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak
