"""The vocabulary projection and the log-probs that come out of it, a strip of the vocabulary at a time.

``log p(x) = z_x − logsumexp(z)`` with ``z = cap · tanh((W h + b) / cap) / τ``. The logits of all ``N`` positions and
``V`` words are never held: the forward pass goes over the vocabulary in strips and carries the running maximum, the sum
of exponentials and the sum behind the entropy (the online softmax of Milakov and Gimelshein 2018, arXiv 1805.02867); it
keeps one normaliser and one entropy a position. The backward pass computes each strip again and turns it in place into
the gradient of the logits,

``∂ log p(x) / ∂z_j = 1[j = x] − p_j`` and ``∂H / ∂z_j = −p_j (log p_j + H)``.

Strips of the vocabulary rather than of the positions: the share of the full logits that exists at once does not depend
on ``N``, each row of ``W`` and of its gradient is touched once a pass, and all ranks do the same whatever their share
of the positions. The softmax is taken in float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

STRIPS = 48
"""At least so many strips. Up to three float32 copies of one exist at once: a sixteenth of the full logits."""

STRIP_ELEMENTS = 1 << 26
"""No strip has more logits than this, however many positions there are: 256 MiB in float32."""

NARROWEST = 64
"""Words of a strip at least: below it a product of matrices is all overhead, and the logits are small anyway."""


def strip_width(positions: int, vocabulary: int) -> int:
    """Words of a strip, for so many positions."""
    widest = min(-(-vocabulary // STRIPS), STRIP_ELEMENTS // max(positions, 1))
    return min(vocabulary, max(widest, NARROWEST))


class ScoringHead(nn.Module):
    """Takes the place of a model's output embedding, with the same parameters under the same names."""

    def __init__(self, linear: nn.Linear, softcap: float | None) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.softcap = softcap

    def forward(
        self, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of ``targets_N`` and entropies, both [N] in nats, float32.

        Args:
            temperature: divides the logits.
            entropy_gradient: whether the entropies carry gradient.
        """
        logprobs_N, entropies_N = _Score.apply(
            hidden_ND, self.weight, self.bias, targets_N, self.softcap, temperature, entropy_gradient
        )
        return logprobs_N, entropies_N


def _logits(
    hidden_ND: Tensor, weight_WD: Tensor, bias_W: Tensor | None, softcap: float | None, temperature: float
) -> Tensor:
    """The logits of one strip, [N, W] in float32, divided by the temperature."""
    # Rounded to the model's dtype first, as in the sampling engine.
    logits_NW = nn.functional.linear(hidden_ND, weight_WD, bias_W).float()
    if softcap is not None:
        logits_NW.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        logits_NW.div_(temperature)
    return logits_NW


def _within(targets_N: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Column of each target in the strip ``start:end``, [N, 1] (any column where it is in another), and whether it is
    in this one, [N]."""
    columns_N = targets_N - start
    return columns_N.clamp(0, end - start - 1)[:, None], (columns_N >= 0) & (columns_N < end - start)


class _Score(torch.autograd.Function):
    """See the module. Saves what a plain projection would: hidden states and weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor,
        softcap: float | None, temperature: float, entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        positions, vocabulary = len(hidden_ND), len(weight_VD)
        largest_N = hidden_ND.new_full((positions,), torch.finfo(torch.float32).min, dtype=torch.float32)
        exponentials_N, products_N = torch.zeros_like(largest_N), torch.zeros_like(largest_N)
        target_logits_N = torch.zeros_like(largest_N)
        width = strip_width(positions, vocabulary)
        for start in range(0, vocabulary, width):
            end = min(start + width, vocabulary)
            bias_W = None if bias_V is None else bias_V[start:end]
            logits_NW = _logits(hidden_ND, weight_VD[start:end], bias_W, softcap, temperature)
            columns_N1, here_N = _within(targets_N, start, end)
            target_logits_N += logits_NW.gather(1, columns_N1)[:, 0] * here_N
            before_N, largest_N = largest_N, torch.maximum(largest_N, logits_NW.amax(1))
            logits_NW.sub_(largest_N[:, None])
            # sum of e^(z - m) and of (z - m) e^(z - m), both moved to the new maximum m
            moved_N = before_N - largest_N
            scale_N = moved_N.exp()
            products_N = scale_N * (products_N + moved_N * exponentials_N)
            powers_NW = logits_NW.exp()
            exponentials_N = scale_N * exponentials_N + powers_NW.sum(1)
            products_N += powers_NW.mul_(logits_NW).sum(1)
            del logits_NW, powers_NW
        normalisers_N = largest_N + exponentials_N.log()
        entropies_N = exponentials_N.log() - products_N / exponentials_N
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N.clone())
        ctx.settings = softcap, temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies_N)
        return target_logits_N - normalisers_N, entropies_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_logprob_N: Tensor, by_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N = ctx.saved_tensors
        softcap, temperature, entropy_gradient = ctx.settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Partial sums over strips are rounded once, at the end.
        by_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if wants_hidden else None
        by_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        by_bias_V = torch.empty_like(bias_V) if wants_bias else None
        vocabulary, width = len(weight_VD), strip_width(len(hidden_ND), len(weight_VD))
        for start in range(0, vocabulary, width):
            end = min(start + width, vocabulary)
            strip_WD = weight_VD[start:end]
            logits_NW = _logits(
                hidden_ND, strip_WD, None if bias_V is None else bias_V[start:end], softcap, temperature
            )
            slope_NW = None if softcap is None else 1 - (logits_NW * (temperature / softcap)).square_()
            logits_NW.sub_(normalisers_N[:, None])
            if entropy_gradient:
                assert by_entropy_N is not None
                factors_NW = (logits_NW + entropies_N[:, None]).mul_(by_entropy_N[:, None])
                factors_NW.add_(by_logprob_N[:, None])
                by_logits_NW = logits_NW.exp_().mul_(factors_NW).neg_()
                del factors_NW
            else:
                by_logits_NW = logits_NW.exp_().mul_(-by_logprob_N[:, None])
            columns_N1, here_N = _within(targets_N, start, end)
            by_logits_NW.scatter_add_(1, columns_N1, (by_logprob_N * here_N)[:, None])
            if slope_NW is not None:
                by_logits_NW.mul_(slope_NW)
            if temperature != 1.0:
                by_logits_NW.div_(temperature)
            del logits_NW, slope_NW
            by_logits_NW = by_logits_NW.to(weight_VD.dtype)
            if by_hidden_ND is not None and by_hidden_ND.dtype == weight_VD.dtype:
                by_hidden_ND.addmm_(by_logits_NW, strip_WD)
            elif by_hidden_ND is not None:
                by_hidden_ND += by_logits_NW @ strip_WD
            if by_weight_VD is not None:
                torch.mm(by_logits_NW.t(), hidden_ND, out=by_weight_VD[start:end])
            if by_bias_V is not None:
                by_bias_V[start:end] = by_logits_NW.sum(0)
            del by_logits_NW
        if by_hidden_ND is not None:
            by_hidden_ND = by_hidden_ND.to(hidden_ND.dtype)
        return by_hidden_ND, by_weight_VD, by_bias_V, None, None, None, None
