"""The metrics of a step. Sums and counts are added over micro-batches and ranks and divided once.

Kullback-Leibler divergences come as k1 (mean log ratio: unbiased, can be negative) and k3 (never negative).
"""

import math
from dataclasses import dataclass, field

import torch

from calibrated_rl.learner.losses.base import Loss, LossInputs, LossOutput
from calibrated_rl.learner.losses.policy import k3


@dataclass(slots=True)
class Sums:
    """Running sums (value, count) and maxima; adding is associative, so ranks and micro-batches may join."""

    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    maxima: dict[str, float] = field(default_factory=dict)

    def add(self, addend: "Sums") -> None:
        for name, (value, count) in addend.means.items():
            old_value, old_count = self.means.get(name, (0.0, 0.0))
            self.means[name] = (old_value + value, old_count + count)
        for name, value in addend.maxima.items():
            self.maxima[name] = max(self.maxima.get(name, -math.inf), value)

    def results(self) -> dict[str, float]:
        """Means and maxima, plus what follows from them."""
        values = {name: value / count for name, (value, count) in self.means.items() if count}
        values |= self.maxima
        if "importance_square" in values:
            # (Σ w)² / (N Σ w²): 1 if all weights are equal.
            square = values.pop("importance_square")
            values["effective_sample_share"] = values["importance_mean"] ** 2 / max(square, 1e-30)
        return values


def collect(inputs: LossInputs, output: LossOutput, loss: Loss) -> Sums:
    """Metrics of one micro-batch: the loss's own and those that all losses share."""
    with torch.no_grad():
        logprobs, count = inputs.logprobs.detach(), float(inputs.logprobs.numel())
        means = dict(output.means)
        maxima = dict(output.maxima)
        if inputs.values is None:
            means["nll"] = (-logprobs.sum(), count)
            means["entropy"] = (inputs.entropy.detach().sum(), count)
        means["loss"] = (output.loss.detach(), 0.0)
        if inputs.reference_logprobs is not None:
            means["kl_reference_k1"] = ((logprobs - inputs.reference_logprobs).sum(), count)
            means["kl_reference_k3"] = (k3(inputs.reference_logprobs, logprobs).sum(), count)
        if loss.policy_gradient:
            mismatch = inputs.old_logprobs - inputs.sampler_logprobs
            importance = torch.exp(mismatch)
            means["kl_sampler_k1"] = (-mismatch.sum(), count)
            means["kl_sampler_k3"] = (k3(inputs.old_logprobs, inputs.sampler_logprobs).sum(), count)
            means["kl_update_k3"] = (k3(logprobs, inputs.old_logprobs).sum(), count)
            means["mismatch_mean"] = (mismatch.abs().sum(), count)
            means["importance_mean"] = (importance.sum(), count)
            means["importance_square"] = (importance.square().sum(), count)
            maxima["mismatch_max"] = mismatch.abs().max()
        names, values = list(means), [torch.as_tensor(v[0], dtype=torch.float64) for v in means.values()]
        sums = torch.stack([v.to(logprobs.device) for v in values]).tolist()
        return Sums(
            means={n: (s, float(means[n][1])) for n, s in zip(names, sums, strict=True)},
            maxima={n: float(v) for n, v in maxima.items()},
        )
