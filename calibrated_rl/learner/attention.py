"""Causal attention over the branches of a packed micro-batch (``packing.py``).

A branch's tokens see the tokens of their path up to themselves, and nothing else. Two ways to compute that:

- **Sequences side by side**, on a CPU and in float32: the paths are gathered into a few batches of similar length and
  go through torch's own kernel with its causal flag. What stands after the end of a path is seen by none of its tokens,
  so no mask is needed, and a mask would cost more: with one, the kernel computes both triangles.
- **Variable-length attention**, on a GPU in half precision: the kernel takes keys and values by path and queries by
  branch, and pads nothing.

Attention dropout is not applied, whatever the model's config says: the log-probs must be those of the engine that
sampled.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from calibrated_rl.learner.packing import PackedBatch

NAME = "calibrated_rl_branches"
"""Under which transformers knows ``attend``."""

SIMILAR = 0.8
"""Paths of one batch are at least so long as its longest: at most a fifth of a batch is padding, and there are few."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideBySide:
    """Batches of paths, each ``B`` paths of at most ``L`` tokens."""

    gather: list[Tensor]
    """Each [B, L]: index into [T]; 0 after the end of a path."""
    slots: Tensor
    """[T] where each token's own result stands in the batches, flat and one after the other."""

    def to(self, device: torch.device) -> "SideBySide":
        return SideBySide(gather=[index.to(device) for index in self.gather], slots=self.slots.to(device))

    def __call__(
        self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention, [T, H, D]."""
        results = []
        for index_BL in self.gather:
            query_BHLD, key_BGLD, value_BGLD = (
                tensor.index_select(0, index_BL.flatten()).unflatten(0, index_BL.shape).transpose(1, 2)
                for tensor in (query_THD, key_TGD, value_TGD)
            )
            result_BHLD = _causal(query_BHLD, key_BGLD, value_BGLD, scale, window)
            results.append(result_BHLD.transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, self.slots)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VariableLength:
    """Lengths of branches and paths for a kernel that takes both."""

    paths: Tensor | None
    """[P] index into [T]; None where nothing is shared and both are the same."""
    branch_starts: Tensor
    """[S + 1] int32"""
    path_starts: Tensor
    """[S + 1] int32"""
    longest_branch: int
    longest_path: int

    def to(self, device: torch.device) -> "VariableLength":
        return VariableLength(
            paths=None if self.paths is None else self.paths.to(device),
            branch_starts=self.branch_starts.to(device),
            path_starts=self.path_starts.to(device),
            longest_branch=self.longest_branch,
            longest_path=self.longest_path,
        )

    def __call__(
        self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention, [T, H, D]."""
        from torch.nn.attention.varlen import varlen_attn

        if self.paths is not None:
            key_TGD, value_TGD = key_TGD.index_select(0, self.paths), value_TGD.index_select(0, self.paths)
        result = varlen_attn(
            query_THD, key_TGD, value_TGD, self.branch_starts, self.path_starts, self.longest_branch,
            self.longest_path, scale=scale, enable_gqa=query_THD.shape[1] != key_TGD.shape[1],
            window_size=(-1 if window is None else window - 1, 0),
        )  # fmt: skip
        assert isinstance(result, Tensor)
        return result


Layout = SideBySide | VariableLength


def layout_of(packed: PackedBatch, device: torch.device, dtype: torch.dtype) -> Layout:
    """How attention over ``packed`` is computed there."""
    layout: Layout
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        layout = variable_length(packed)
    else:
        layout = side_by_side(packed)
    return layout.to(device)


def side_by_side(packed: PackedBatch) -> SideBySide:
    lengths, starts, own = np.diff(packed.path_starts), packed.path_starts, np.diff(packed.branch_starts)
    order = np.argsort(-lengths, kind="stable")
    gather: list[NDArray[np.int64]] = []
    slots = np.empty(len(packed.input_ids), np.int64)
    at = first = 0
    while first < len(order):
        longest = int(lengths[order[first]])
        together = order[first : first + int((lengths[order[first:]] >= SIMILAR * longest).sum())]
        index = np.zeros((len(together), longest), np.int64)
        for row, branch in enumerate(together):
            length = int(lengths[branch])
            index[row, :length] = packed.paths[starts[branch] : starts[branch] + length]
            begin = packed.branch_starts[branch]
            slots[begin : begin + own[branch]] = at + row * longest + np.arange(length - own[branch], length)
        gather.append(index)
        at += index.size
        first += len(together)
    return SideBySide(gather=[torch.from_numpy(index) for index in gather], slots=torch.from_numpy(slots))


def variable_length(packed: PackedBatch) -> VariableLength:
    shares = len(packed.paths) > len(packed.input_ids)
    return VariableLength(
        paths=torch.from_numpy(packed.paths) if shares else None,
        branch_starts=torch.from_numpy(packed.branch_starts.astype(np.int32)),
        path_starts=torch.from_numpy(packed.path_starts.astype(np.int32)),
        longest_branch=int(np.diff(packed.branch_starts).max()),
        longest_path=int(np.diff(packed.path_starts).max()),
    )


def _causal(query_BHLD: Tensor, key_BGLD: Tensor, value_BGLD: Tensor, scale: float, window: int | None) -> Tensor:
    length, shared = query_BHLD.shape[2], query_BHLD.shape[1] != key_BGLD.shape[1]
    if window is None or window >= length:
        return scaled_dot_product_attention(
            query_BHLD, key_BGLD, value_BGLD, is_causal=True, scale=scale, enable_gqa=shared
        )
    places_L = torch.arange(length, device=query_BHLD.device)
    ago_LL = places_L[:, None] - places_L
    seen_LL = (ago_LL >= 0) & (ago_LL < window)
    return scaled_dot_product_attention(
        query_BHLD, key_BGLD, value_BGLD, attn_mask=seen_LL, scale=scale, enable_gqa=shared
    )


def attend(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer, with ``layout`` as it was given to the model: [1, T, H, D].

    Not to be compiled: the batches of paths differ in number and size each time.
    """
    query_THD, key_TGD, value_TGD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD))
    scale = query_THD.shape[-1] ** -0.5 if scaling is None else scaling
    return layout(query_THD, key_TGD, value_TGD, scale, sliding_window)[None], None
