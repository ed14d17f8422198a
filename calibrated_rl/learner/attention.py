"""Causal attention over the branches of a packed micro-batch (``packing.py``).

A branch's tokens attend to the tokens of their path up to themselves, and to nothing else. Two ways to compute that:

- **Sequences side by side**, on a CPU and in float32: the paths are gathered into a few batches of similar length and
  go through torch's own kernel with its causal flag. No token of a path attends to the padding after its end, so no
  mask is needed, and a mask would cost more: with one, the kernel computes both triangles. Branches that are
  short relative to their path (replies to one long dialogue) are gathered by themselves, with a mask: only their own
  tokens are queries.
- **Variable-length attention**, on a GPU in half precision: the kernel takes keys and values by path and queries by
  branch, and pads nothing.

Attention dropout is not applied, whatever the model's config says: the log-probs must be those of the engine that
sampled. Models that pass further arguments to their attention, such as sinks or a bias by position, are refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from calibrated_rl.errors import UserError
from calibrated_rl.learner.packing import PackedBatch

NAME = "calibrated_rl_branches"
"""Name under which ``attend`` is registered in transformers."""

WITHOUT_EFFECT = {
    "dropout", "is_causal", "position_ids", "use_cache", "output_attentions", "cache_position", "past_key_values",
    "output_hidden_states", "output_router_logits", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    "return_dict", "logits_to_keep",
}  # fmt: skip
"""Arguments of models to their attention that ``attend`` does not use and that change nothing here."""

NOT_GIVEN = -1
"""Default of ``sliding_window``: some models express windows by a mask alone, and pass no such argument."""

SIMILAR = 0.8
"""Paths of one batch are at least so long as its longest: at most a fifth of a batch is padding, and there are few."""
SHORT, LONG = 0.25, 128
"""Branches of at most this share of a path of at least so many tokens are gathered by themselves. With more than half
of the path, the mask would cost more than it saves, and with short paths one more batch would."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paths:
    """``B`` paths of at most ``L`` tokens, with ``Q`` queries each."""

    keys: Tensor
    """[B, L]: index into [T]; 0 after the end of a path."""
    queries: Tensor
    """[B, Q]: index into [T] of the last tokens of each path, at most ``Q``; 0 after the last."""
    distance: Tensor | None
    """[B, Q, L] how far before each query each token of its path is; negative for later tokens and padding. None: all
    tokens are queries, each at its own position."""

    def to(self, device: torch.device) -> "Paths":
        distance = None if self.distance is None else self.distance.to(device)
        return Paths(keys=self.keys.to(device), queries=self.queries.to(device), distance=distance)

    def attend(self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, scale: float, window: int | None) -> Tensor:
        """Attention of the queries, [B * Q, H, D]."""
        query_BHQD, key_BGLD, value_BGLD = (
            tensor.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
            for tensor, index in ((query_THD, self.queries), (key_TGD, self.keys), (value_TGD, self.keys))
        )
        length, grouped = key_BGLD.shape[2], query_BHQD.shape[1] != key_BGLD.shape[1]
        distance, mask = self.distance, None
        if distance is None and window is not None and window < length:
            positions_L = torch.arange(length, device=self.keys.device)
            distance = (positions_L[:, None] - positions_L)[None]
        if distance is not None:
            mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        result_BHQD = scaled_dot_product_attention(
            query_BHQD, key_BGLD, value_BGLD, attn_mask=None if mask is None else mask[:, None],
            is_causal=mask is None, scale=scale, enable_gqa=grouped,
        )  # fmt: skip
        return result_BHQD.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideBySide:
    """All paths of a micro-batch, in a few batches."""

    batches: list[Paths]
    slots: Tensor
    """[T] index of each token's own result in the concatenated batches."""

    def to(self, device: torch.device) -> "SideBySide":
        return SideBySide(batches=[batch.to(device) for batch in self.batches], slots=self.slots.to(device))

    def __call__(
        self, query_THD: Tensor, key_TGD: Tensor, value_TGD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Attention, [T, H, D]."""
        results = [batch.attend(query_THD, key_TGD, value_TGD, scale, window) for batch in self.batches]
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
    """How to compute attention over ``packed`` on ``device``."""
    layout: Layout
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        layout = variable_length(packed)
    else:
        layout = side_by_side(packed)
    return layout.to(device)


def side_by_side(packed: PackedBatch) -> SideBySide:
    lengths, branch_lengths = np.diff(packed.path_starts), np.diff(packed.branch_starts)
    is_short = (lengths >= LONG) & (branch_lengths <= SHORT * lengths)
    slots = np.empty(len(packed.input_ids), np.int64)
    batches, offset = [], 0
    for short in (False, True):
        branches = np.flatnonzero(is_short == short)
        order = branches[np.argsort(-lengths[branches], kind="stable")]
        while len(order):
            longest = int(lengths[order[0]])
            count = int((lengths[order] >= SIMILAR * longest).sum())
            batch_branches, order = order[:count], order[count:]
            n_queries = int(branch_lengths[batch_branches].max()) if short else longest
            for row, branch in enumerate(batch_branches):
                begin = offset + row * n_queries + (0 if short else lengths[branch] - branch_lengths[branch])
                slots[packed.branch_starts[branch] : packed.branch_starts[branch + 1]] = begin + np.arange(
                    branch_lengths[branch]
                )
            batches.append(_paths(packed, batch_branches, longest, n_queries if short else None))
            offset += len(batch_branches) * n_queries
    return SideBySide(batches=batches, slots=torch.from_numpy(slots))


def _paths(packed: PackedBatch, branches: NDArray[np.int64], longest: int, n_queries: int | None) -> Paths:
    """Those of ``branches``; the last ``n_queries`` tokens of each are queries, at most its own; None: all are."""
    keys = np.zeros((len(branches), longest), np.int64)
    for row, branch in enumerate(branches):
        start, end = packed.path_starts[branch], packed.path_starts[branch + 1]
        keys[row, : end - start] = packed.paths[start:end]
    if n_queries is None:
        return Paths(keys=torch.from_numpy(keys), queries=torch.from_numpy(keys), distance=None)
    lengths, branch_lengths = np.diff(packed.path_starts)[branches], np.diff(packed.branch_starts)[branches]
    queries = np.zeros((len(branches), n_queries), np.int64)
    for row, branch in enumerate(branches):
        queries[row, : branch_lengths[row]] = np.arange(packed.branch_starts[branch], packed.branch_starts[branch + 1])
    # The padding of a row of queries repeats the last one's position: a row that attends to nothing has no softmax.
    positions = np.minimum((lengths - branch_lengths)[:, None] + np.arange(n_queries), lengths[:, None] - 1)
    distance = positions[:, :, None] - np.arange(longest)
    distance[np.broadcast_to(np.arange(longest) >= lengths[:, None, None], distance.shape)] = -1
    return Paths(keys=torch.from_numpy(keys), queries=torch.from_numpy(queries), distance=torch.from_numpy(distance))


def variable_length(packed: PackedBatch) -> VariableLength:
    shares = len(packed.paths) > len(packed.input_ids)
    return VariableLength(
        paths=torch.from_numpy(packed.paths) if shares else None,
        branch_starts=torch.from_numpy(packed.branch_starts.astype(np.int32)),
        path_starts=torch.from_numpy(packed.path_starts.astype(np.int32)),
        longest_branch=int(np.diff(packed.branch_starts).max()),
        longest_path=int(np.diff(packed.path_starts).max()),
    )


def _has_window(attention: nn.Module) -> bool:
    """Whether the config gives this layer a window."""
    config: Any = getattr(attention, "config", None)
    kinds, layer = getattr(config, "layer_types", None), getattr(attention, "layer_idx", None)
    windowed = kinds is None or layer is None or kinds[layer] == "sliding_attention"
    return windowed and bool(getattr(config, "sliding_window", None))


def attend(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1GTD: Tensor,
    value_1GTD: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = NOT_GIVEN,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer, with the ``layout`` that the model got: [1, T, H, D].

    Not to be compiled: the batches of paths differ in number and size each time.

    Raises:
        UserError: the model does not pass ``layout`` on, or its attention takes arguments that are not supported here.
    """
    if layout is None:
        raise UserError(
            f"models with {type(module).__name__} are not supported: it gets no layout of which tokens attend to which"
        )
    unsupported = {name for name, value in options.items() if value is not None and name not in WITHOUT_EFFECT}
    if unsupported or getattr(module, "is_causal", True) is False:
        unsupported_names = ", ".join(sorted(unsupported)) or "no causal order"
        raise UserError(
            f"models with {type(module).__name__} are not supported: its attention takes {unsupported_names}"
        )
    if sliding_window == NOT_GIVEN:
        if _has_window(module):
            raise UserError(f"models with {type(module).__name__} and a 'sliding_window' are not supported")
        sliding_window = None
    query_THD, key_TGD, value_TGD = (x[0].transpose(0, 1) for x in (query_1HTD, key_1GTD, value_1GTD))
    scale = query_THD.shape[-1] ** -0.5 if scaling is None else scaling
    return layout(query_THD, key_TGD, value_TGD, scale, sliding_window)[None], None
