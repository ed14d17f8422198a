"""Pack sequences of different lengths into rows of about equal length.

A row holds whole sequences one after the other; position ids restart at 0 with each, from which the model
derives a block-diagonal causal mask, so that no sequence sees another. Sequences are placed first-fit in
order of decreasing length (at most 11/9 of the best number of rows, plus one). A sequence that is
longer than a row gets a row of its own length: nothing is ever cut.

Every rank packs the whole batch and takes its share, so that all agree on the number of micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One micro-batch of ``B`` rows of ``T`` tokens, ``N`` of which are scored."""

    input_ids: NDArray[np.int64]
    """[B, T] padded with 0."""
    position_ids: NDArray[np.int64]
    """[B, T] each padding token has position 0 and is thereby a sequence of its own."""
    select: NDArray[np.int64]
    """[N] flat index into [B * T] of the positions whose next token is scored."""
    targets: NDArray[np.int64]
    """[N] the scored tokens."""
    source: NDArray[np.int64]
    """[N] index of the scored tokens in the flat arrays of the ``SampleBatch``."""
    sequence: NDArray[np.int64]
    """[N] index of the sequence in the ``SampleBatch``; the tokens of one sequence stand together."""


EMPTY = PackedBatch(
    input_ids=np.zeros((1, 2), np.int64),
    position_ids=np.arange(2, dtype=np.int64)[None],
    select=np.zeros(1, np.int64),
    targets=np.zeros(1, np.int64),
    source=np.zeros(0, np.int64),
    sequence=np.zeros(0, np.int64),
)
"""For ranks that have fewer micro-batches than others but must join their collectives; its loss is zero."""


def pack(
    samples: SampleBatch | Sequence[Sample],
    row_tokens: int,
    max_rows: int,
    *,
    ranks: int = 1,
    unit: int = 1,
    chosen: NDArray[np.int64] | None = None,
    scored: NDArray[np.bool_] | None = None,
) -> list[PackedBatch]:
    """Pack ``samples`` into micro-batches of at most ``max_rows`` rows.

    Args:
        samples: the sequences. One without a scored token is left out.
        row_tokens: length of a row in tokens.
        max_rows: rows of a micro-batch.
        ranks: the number of micro-batches is raised to a multiple of it, as far as there are rows.
        unit: so many consecutive samples stay in one row (2 for pairs).
        chosen: [C] indices of the sequences to pack; all by default. Units are kept whole by the caller.
        scored: [L] replaces the batch's own ``scored`` (after a rejection).
    """
    batch = samples if isinstance(samples, SampleBatch) else SampleBatch.of(samples)
    scored = batch.scored if scored is None else scored
    indices = np.arange(len(batch.starts) - 1) if chosen is None else chosen
    assert len(indices) % unit == 0, f"{len(indices)} sequences do not form units of {unit}"
    counts = np.add.reduceat(np.append(scored, False).astype(np.int64), batch.starts[:-1])
    counts[batch.lengths == 0] = 0
    units = [u[counts[u] > 0] for u in indices.reshape(-1, unit)]
    rows = _first_fit_decreasing(batch, [u for u in units if len(u)], row_tokens)
    if not rows:
        return []
    batches = ranks * -(-len(rows) // (ranks * max_rows))
    # Neighbours are of similar length, so little is lost to padding within a micro-batch.
    return [_assemble(batch, part, scored) for part in _split(rows, min(batches, len(rows)))]


def _first_fit_decreasing(
    batch: SampleBatch, units: list[NDArray[np.int64]], row_tokens: int
) -> list[list[int]]:
    lengths = np.asarray([batch.lengths[u].sum() for u in units], np.int64)
    free = np.zeros(len(units), np.int64)
    rows: list[list[int]] = []
    for place in np.argsort(-lengths, kind="stable"):
        fits = free[: len(rows)] >= lengths[place]
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            free[row] = max(row_tokens, lengths[place])
        rows[row].extend(int(i) for i in units[place])
        free[row] -= lengths[place]
    return rows


def _split(rows: list[list[int]], parts: int) -> list[list[list[int]]]:
    bounds = [len(rows) * i // parts for i in range(parts + 1)]
    return [rows[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def _assemble(batch: SampleBatch, rows: list[list[int]], scored: NDArray[np.bool_]) -> PackedBatch:
    width = max(int(batch.lengths[row].sum()) for row in rows)
    input_ids = np.zeros((len(rows), width), np.int64)
    position_ids = np.zeros((len(rows), width), np.int64)
    select, source, sequence = [], [], []
    for r, row in enumerate(rows):
        at = 0
        for index in row:
            start, end = int(batch.starts[index]), int(batch.starts[index + 1])
            input_ids[r, at : at + end - start] = batch.ids[start:end]
            position_ids[r, at : at + end - start] = np.arange(end - start)
            here = np.flatnonzero(scored[start:end])
            select.append(r * width + at + here - 1)
            source.append(start + here)
            sequence.append(np.full(len(here), index))
            at += end - start
    sources = np.concatenate(source).astype(np.int64)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        select=np.concatenate(select).astype(np.int64),
        targets=batch.ids[sources].astype(np.int64),
        source=sources,
        sequence=np.concatenate(sequence).astype(np.int64),
    )
