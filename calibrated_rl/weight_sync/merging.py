"""Merges low-rank adapters into the weights of their base: the one implementation for learner and engines.

Float32: ``W + s B A``. A model in bfloat16 has 8 bits of precision, and at the learning rates of fine-tuning an update
is a hundredth of the last one: rounded to the nearest, nearly all weights stay where they were and the update does not
arrive. So each weight is rounded up or down by a *fixed threshold of its own*, ``u`` uniform in [0, 1): up if what is
cut off is at least ``1 − u`` of a step of bfloat16. A change of a hundredth of a step moves one weight in a hundred by
a whole step, and over the many weights of a matrix the change arrives as large as it is (stochastic rounding, Gupta et
al. 2015, arXiv 1502.02551, section 3; but drawn once, by row and column: the same adapters always give the same
weights, and no change gives the base itself).

Learner and engines are other processes, on other devices and with other numbers of threads, and must get the same bits:
products are added up in float64, which leaves no last bit to the order of summation, and thresholds are integers.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 18}
"""Elements in float64 at a time: on a CPU 2 MiB, what fits into its cache (four times as fast as all at once) ..."""
DEFAULT_CHUNK_ELEMENTS = 1 << 24
"""... and elsewhere 128 MiB."""


# A custom operator is opaque to torch's compiler, which might fuse and round otherwise.
@torch.library.custom_op("calibrated_rl::merged", mutates_args=())  # type: ignore[untyped-decorator]
def merged_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``weight + scale · b @ a`` in the dtype of ``weight``, which is float32 or bfloat16; a new tensor.

    Args:
        weight: [out, in]
        a: [rank, in] float32
        b: [out, rank] float32
    """
    if weight.dtype == torch.float32:
        return torch.addmm(weight, b.float(), a.float(), alpha=scale)
    assert weight.dtype == torch.bfloat16, f"adapters of a model in {weight.dtype}"
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for rows in _row_chunks(weight):
        exact = torch.addmm(weight[rows].double(), b[rows].double(), a.double(), alpha=scale).float()
        result[rows] = _by_thresholds(exact, rows.start)
    return result


@merged_weight.register_fake  # type: ignore[untyped-decorator]
def _(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _by_thresholds(exact: Tensor, first_row: int) -> Tensor:
    """float32 [rows, in] in bfloat16, which is its upper 16 bits: a carry out of the lower ones rounds up."""
    rows = _mixed(torch.arange(first_row, first_row + exact.shape[0], device=exact.device), 0x2545F491)
    columns = _mixed(torch.arange(exact.shape[1], device=exact.device), 0x1B873593)
    thresholds = ((rows[:, None] ^ columns) * 0x2C1B3C6D).bitwise_right_shift_(16).bitwise_and_(0xFFFF)
    bits = thresholds.add_(exact.view(torch.int32)).bitwise_and_(-0x10000)
    return bits.view(torch.float32).to(torch.bfloat16)


def _mixed(numbers: Tensor, seed: int) -> Tensor:
    """Integers [N] (int64) hashed to pseudo-random int32: Thomas Wang's and Bob Jenkins' kind of mixing."""
    mask = 0xFFFFFFFF
    mixed = (numbers + seed) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x2C1B3C6D)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & mask
    mixed = mixed ^ (mixed >> 16)
    return torch.where(mixed > 0x7FFFFFFF, mixed - (mask + 1), mixed).to(torch.int32)


def arrived_change(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """How much of a change arrives in the merged weights, as sums that can be added over several maps: ``⟨Δ, Δ⟩``,
    ``⟨Δ', Δ⟩`` and ``⟨Δ' − Δ, Δ' − Δ⟩``, [3] float64, with ``Δ`` as requested and ``Δ'`` as merged."""
    result, sums = merged_weight(weight, a, b, scale), torch.zeros(3, dtype=torch.float64, device=weight.device)
    for rows in _row_chunks(weight):
        requested = scale * (b[rows].double() @ a.double())
        actual = result[rows].double() - weight[rows].double()
        error = actual - requested
        sums += torch.stack([(requested * requested).sum(), (actual * requested).sum(), (error * error).sum()])
    return sums


def merge_error(sums: Tensor) -> dict[str, float]:
    """How much of the adapters' change arrives when it is merged, from the added up ``sums`` of ``arrived_change``:
    ``merge_arrived``, ``⟨Δ', Δ⟩ / ⟨Δ, Δ⟩``, is the share that arrives; ``merge_error``, ``|Δ' − Δ| / |Δ|``, how large
    the rounding is relative to the change. Empty where there was no change."""
    requested, projected, error = sums.tolist()
    return {"merge_arrived": projected / requested, "merge_error": math.sqrt(error / requested)} if requested else {}


def _row_chunks(weight: Tensor) -> Iterator[slice]:
    """Rows of ``weight``, some at a time."""
    rows = max(1, CHUNK_ELEMENTS.get(weight.device.type, DEFAULT_CHUNK_ELEMENTS) // weight.shape[1])
    for first in range(0, len(weight), rows):
        yield slice(first, min(first + rows, len(weight)))
