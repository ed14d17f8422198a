"""The vocabulary projection and the log-probs computed from it, a chunk of the vocabulary at a time.

``log p(x) = z_x − logsumexp(z)`` with ``z = cap · tanh((W h + b) / cap) / τ``. The logits of all ``N`` positions and
``V`` words are never all in memory: the forward pass goes over the vocabulary in chunks and carries the running
maximum, the sum of exponentials and the sum behind the entropy (the online softmax of Milakov and Gimelshein 2018,
arXiv 1805.02867); it keeps one normaliser and one entropy a position. The backward pass recomputes each chunk and turns
it in place into the gradient of the logits,

``∂ log p(x) / ∂z_j = 1[j = x] − p_j`` and ``∂H / ∂z_j = −p_j (log p_j + H)``.

Chunks of the vocabulary rather than of the positions: the share of the full logits that exists at once does not depend
on ``N``, each row of ``W`` and of its gradient is touched once a pass, and all ranks do the same whatever their share
of the positions. The softmax is taken in float32.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

VOCAB_CHUNKS = 48
"""Minimum number of chunks. Up to three float32 copies of one exist at once: a sixteenth of the full logits."""

CHUNK_ELEMENTS = 1 << 26
"""No chunk has more logits than this, however many positions there are: 256 MiB in float32."""

MIN_CHUNK_WIDTH = 64
"""Minimum words of a chunk: below it a product of matrices is all overhead, and the logits are small anyway."""


def chunk_width(positions: int, vocabulary: int) -> int:
    """Words of a chunk, for so many positions."""
    widest = min(-(-vocabulary // VOCAB_CHUNKS), CHUNK_ELEMENTS // max(positions, 1))
    return min(vocabulary, max(widest, MIN_CHUNK_WIDTH))


class ScoringHead(nn.Module):
    """Replaces a model's output embedding, with the same parameters under the same names."""

    def __init__(self, linear: nn.Linear, softcap: float | None) -> None:
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.softcap = softcap
        self.chunk_functions: ChunkFunctions = _absorb, _by_logits

    def compile_chunks(self) -> None:
        """Let torch fuse the operations on a chunk: without it, a GPU reads and writes each one a dozen times."""
        self.chunk_functions = torch.compile(_absorb, dynamic=True), torch.compile(_by_logits, dynamic=True)

    def forward(
        self, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of ``targets_N`` and entropies, both [N] in nats, float32.

        Args:
            temperature: divides the logits.
            entropy_gradient: whether the entropies carry gradient.
        """
        logprobs_N, entropies_N = _Score.apply(
            hidden_ND, self.weight, self.bias, targets_N, self.softcap, temperature, entropy_gradient,
            self.chunk_functions,
        )  # fmt: skip
        return logprobs_N, entropies_N


def _logits(outputs_NW: Tensor, softcap: float | None, temperature: float) -> Tensor:
    """Outputs of the linear map, which are rounded to the model's dtype as in the sampling engine, as logits."""
    # Nothing else uses the map's outputs, so where they are float32 already they are changed in place.
    logits_NW = outputs_NW.float()
    if softcap is not None:
        logits_NW.div_(softcap).tanh_().mul_(softcap)
    if temperature != 1.0:
        logits_NW.div_(temperature)
    return logits_NW


def _within(targets_N: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Column of each target, counted from the chunk's first word, [N, 1] (any column where it is in another chunk),
    and whether it is in this one, [N]."""
    return targets_N.clamp(0, width - 1)[:, None], (targets_N >= 0) & (targets_N < width)


Carried = tuple[Tensor, Tensor, Tensor, Tensor]
"""From chunk to chunk, each [N]: the largest logit m, Σ e^(z − m), Σ (z − m) e^(z − m), the logit of the target."""


def _absorb(
    outputs_NW: Tensor, targets_N: Tensor, carried: Carried, softcap: float | None, temperature: float
) -> Carried:
    """``carried`` after one more chunk; ``targets_N`` are counted from its first word."""
    largest_before_N, exponentials_N, products_N, target_logits_N = carried
    logits_NW = _logits(outputs_NW, softcap, temperature)
    columns_N1, in_chunk_N = _within(targets_N, logits_NW.shape[1])
    target_logits_N = target_logits_N + logits_NW.gather(1, columns_N1)[:, 0] * in_chunk_N
    largest_N = torch.maximum(largest_before_N, logits_NW.amax(1))
    logits_NW.sub_(largest_N[:, None])
    moved_N = largest_before_N - largest_N
    scale_N = moved_N.exp()
    products_N = scale_N * (products_N + moved_N * exponentials_N)
    powers_NW = logits_NW.exp()
    exponentials_N = scale_N * exponentials_N + powers_NW.sum(1)
    return largest_N, exponentials_N, products_N + powers_NW.mul_(logits_NW).sum(1), target_logits_N


def _by_logits(
    outputs_NW: Tensor, targets_N: Tensor, normalisers_N: Tensor, entropies_N: Tensor, by_logprob_N: Tensor,
    by_entropy_N: Tensor | None, softcap: float | None, temperature: float,
) -> Tensor:  # fmt: skip
    """The gradient with respect to the outputs of the linear map, [N, W] in their dtype."""
    dtype = outputs_NW.dtype
    logits_NW = _logits(outputs_NW, softcap, temperature)
    slope_NW = None if softcap is None else 1 - (logits_NW * (temperature / softcap)).square_()
    logits_NW.sub_(normalisers_N[:, None])
    if by_entropy_N is None:
        gradient_NW = logits_NW.exp_().mul_(-by_logprob_N[:, None])
    else:
        factors_NW = (logits_NW + entropies_N[:, None]).mul_(by_entropy_N[:, None])
        gradient_NW = logits_NW.exp_().mul_(factors_NW.add_(by_logprob_N[:, None])).neg_()
    columns_N1, in_chunk_N = _within(targets_N, gradient_NW.shape[1])
    gradient_NW.scatter_add_(1, columns_N1, (by_logprob_N * in_chunk_N)[:, None])
    if slope_NW is not None:
        gradient_NW.mul_(slope_NW)
    if temperature != 1.0:
        gradient_NW.div_(temperature)
    return gradient_NW.to(dtype)


ChunkFunctions = tuple[Callable[..., Carried], Callable[..., Tensor]]
"""``_absorb`` and ``_by_logits``, compiled or not."""


class _Score(torch.autograd.Function):
    """See the module. Saves what a plain projection would: hidden states and weights."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor,
        softcap: float | None, temperature: float, entropy_gradient: bool, chunk_functions: ChunkFunctions,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        absorb, _ = chunk_functions
        least_N = hidden_ND.new_full((len(hidden_ND),), torch.finfo(torch.float32).min, dtype=torch.float32)
        zeros_N = torch.zeros_like(least_N)
        carried: Carried = least_N, zeros_N, zeros_N, zeros_N
        for start, weight_WD, bias_W in _vocab_chunks(weight_VD, bias_V, len(hidden_ND)):
            carried = absorb(linear(hidden_ND, weight_WD, bias_W), targets_N - start, carried, softcap, temperature)
        largest_N, exponentials_N, products_N, target_logits_N = carried
        normalisers_N = largest_N + exponentials_N.log()
        entropies_N = exponentials_N.log() - products_N / exponentials_N
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N.clone())
        ctx.settings = softcap, temperature, entropy_gradient, chunk_functions
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies_N)
        return target_logits_N - normalisers_N, entropies_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_logprob_N: Tensor, by_entropy_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normalisers_N, entropies_N = ctx.saved_tensors
        softcap, temperature, entropy_gradient, (_, by_logits) = ctx.settings
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # Summed over chunks in float32 and rounded once, at the end.
        by_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32) if wants_hidden else None
        by_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        by_bias_V = torch.empty_like(bias_V) if wants_bias else None
        for start, weight_WD, bias_W in _vocab_chunks(weight_VD, bias_V, len(hidden_ND)):
            by_outputs_NW = by_logits(
                linear(hidden_ND, weight_WD, bias_W), targets_N - start, normalisers_N, entropies_N,
                by_logprob_N, by_entropy_N if entropy_gradient else None, softcap, temperature,
            )  # fmt: skip
            if by_hidden_ND is not None and by_hidden_ND.dtype == weight_VD.dtype:
                by_hidden_ND.addmm_(by_outputs_NW, weight_WD)
            elif by_hidden_ND is not None:
                by_hidden_ND += by_outputs_NW @ weight_WD
            if by_weight_VD is not None:
                torch.mm(by_outputs_NW.t(), hidden_ND, out=by_weight_VD[start : start + len(weight_WD)])
            if by_bias_V is not None:
                by_bias_V[start : start + len(weight_WD)] = by_outputs_NW.sum(0)
            del by_outputs_NW
        if by_hidden_ND is not None:
            by_hidden_ND = by_hidden_ND.to(hidden_ND.dtype)
        return by_hidden_ND, by_weight_VD, by_bias_V, None, None, None, None, None


def _vocab_chunks(
    weight_VD: Tensor, bias_V: Tensor | None, positions: int
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """First word, weights and bias of each chunk."""
    width = chunk_width(positions, len(weight_VD))
    for start in range(0, len(weight_VD), width):
        yield start, weight_VD[start : start + width], None if bias_V is None else bias_V[start : start + width]
