"""Pack sequences of different lengths into micro-batches without padding, and compute shared prefixes once.

A micro-batch is one row of ``T`` tokens. The dialogues of a group begin alike (the policy's instructions, the first
user turn), logged histories contain each other, and all dialogues of a task may open with the same words: the
sequences of a micro-batch form a tree, and each of its tokens is computed once. A causal model's state at a token
depends on nothing but the path that leads there, so the result is the same up to rounding, gradients included.
Sequences are in lexicographic order, in which the one that shares most with a sequence precedes it; a *branch* is what
a sequence adds, and its *path* the tokens that it attends to (``attention.py``).

Only what is needed is computed: the last scored token is predicted, not read, and nothing after it matters.

Every rank packs the whole batch and takes its share, so that all agree on the number of micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.sample import Sample

MAX_PATHS = 4
"""The paths of a micro-batch have at most this multiple of its budget in tokens: attention uses memory for each of
them, however much is shared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedBatch:
    """One micro-batch: ``T`` tokens in ``S`` branches, ``N`` scored tokens, ``P`` tokens in all paths together."""

    input_ids: NDArray[np.int64]
    """[T] branch after branch."""
    position_ids: NDArray[np.int64]
    """[T] the position in the sequence."""
    branch_starts: NDArray[np.int64]
    """[S + 1] branch ``s`` is ``branch_starts[s]:branch_starts[s + 1]``."""
    paths: NDArray[np.int64]
    """[P] index into [T]: for each branch all tokens from the beginning of its sequence, its own at the end."""
    path_starts: NDArray[np.int64]
    """[S + 1]"""
    select: NDArray[np.int64]
    """[N] index into [T] of the positions whose next token is scored; one that several sequences share is repeated."""
    targets: NDArray[np.int64]
    """[N] the scored tokens."""
    source: NDArray[np.int64]
    """[N] index of the scored tokens in the flat arrays of the ``SampleBatch``."""
    sequence: NDArray[np.int64]
    """[N] index of the sequence in the ``SampleBatch``; the tokens of one sequence are adjacent."""


EMPTY = PackedBatch(
    input_ids=np.zeros(1, np.int64),
    position_ids=np.zeros(1, np.int64),
    branch_starts=np.asarray([0, 1]),
    paths=np.zeros(1, np.int64),
    path_starts=np.asarray([0, 1]),
    select=np.zeros(1, np.int64),
    targets=np.zeros(1, np.int64),
    source=np.zeros(0, np.int64),
    sequence=np.zeros(0, np.int64),
)
"""For ranks that have fewer micro-batches than others but must join their collectives; its loss is zero."""


def pack(
    samples: SampleBatch | Sequence[Sample],
    micro_batch_tokens: int,
    *,
    ranks: int = 1,
    unit: int = 1,
    indices_to_pack: NDArray[np.int64] | None = None,
    scored: NDArray[np.bool_] | None = None,
) -> list[PackedBatch]:
    """Pack ``samples`` into micro-batches of about equal size.

    Args:
        samples: the sequences. One without a scored token is left out.
        micro_batch_tokens: a micro-batch computes at most so many tokens; a unit that has more is one of its own.
        ranks: the number of micro-batches is raised to a multiple of it, as far as there are sequences.
        unit: so many consecutive samples stay in one micro-batch (2 for pairs).
        indices_to_pack: [C] the sequences; all by default. Units are kept whole by the caller.
        scored: [L] replaces the batch's own ``scored`` (after a rejection).
    """
    batch = samples if isinstance(samples, SampleBatch) else SampleBatch.of(samples)
    scored = batch.scored if scored is None else scored
    indices = np.arange(len(batch.starts) - 1) if indices_to_pack is None else indices_to_pack
    assert len(indices) % unit == 0, f"{len(indices)} sequences do not form units of {unit}"
    input_ids = {int(i): _model_input(batch, int(i), scored) for i in indices}
    units = [[int(i) for i in u if len(input_ids[int(i)])] for u in indices.reshape(-1, unit)]
    units = sorted((u for u in units if u), key=lambda u: _key(input_ids[u[0]]))
    if not units:
        return []
    return [
        _assemble(batch, batch_units, input_ids, scored)
        for batch_units in _split(units, input_ids, micro_batch_tokens, ranks)
    ]


def _model_input(batch: SampleBatch, index: int, scored: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The tokens of a sequence that the model must read: those before its last scored one."""
    start, end = int(batch.starts[index]), int(batch.starts[index + 1])
    scored_positions = np.flatnonzero(scored[start:end])
    return batch.ids[start : start + int(scored_positions[-1])] if len(scored_positions) else batch.ids[start:start]


def _key(ids: NDArray[np.int32]) -> bytes:
    """Bytes that sort in the order of the ids."""
    return ids.astype(">u4").tobytes()


def _shared(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


def _split(
    units: list[list[int]], input_ids: dict[int, NDArray[np.int32]], budget: int, ranks: int
) -> list[list[list[int]]]:
    """Cut the ordered ``units`` into as few parts as the budget allows, a multiple of ``ranks``, none much larger than
    the others."""
    lengths, additions, previous_ids = [], [], np.zeros(0, np.int32)
    for unit in units:
        previous_last = previous_ids
        shared = 0
        for index in unit:
            shared += _shared(previous_ids, input_ids[index])
            previous_ids = input_ids[index]
        lengths.append(sum(len(input_ids[index]) for index in unit))
        additions.append((lengths[-1] - shared, _shared(previous_last, input_ids[unit[0]])))

    def cuts(tokens: int) -> list[int]:
        """First unit of each part, where parts compute at most ``tokens`` each."""
        begins, computed, path_tokens = [0], 0, 0
        for number, (length, (added, shared)) in enumerate(zip(lengths, additions, strict=True)):
            if computed and (computed + added > tokens or path_tokens + length > MAX_PATHS * budget):
                begins.append(number)
                computed = path_tokens = 0
            computed += added if computed else added + shared
            path_tokens += length
        return begins

    n_parts = ranks * -(-len(cuts(budget)) // ranks)
    low, high = 0, budget
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cuts(middle)) <= n_parts else (middle, high)
    begins = [*cuts(high), len(units)]
    return [units[a:b] for a, b in zip(begins, begins[1:], strict=False)]


def _assemble(
    batch: SampleBatch, units: list[list[int]], inputs: dict[int, NDArray[np.int32]], scored: NDArray[np.bool_]
) -> PackedBatch:
    indices = [index for unit in units for index in unit]
    input_ids, position_ids = [], []
    path_of: dict[int, NDArray[np.int64]] = {}
    ends: list[int] = []
    """End of each branch in [T]."""
    leaves: list[NDArray[np.int64]] = []
    """The path of each branch."""
    previous_ids, path, total = np.zeros(0, np.int32), np.zeros(0, np.int64), 0
    for index in sorted(indices, key=lambda index: _key(inputs[index])):
        ids = inputs[index]
        shared = _shared(previous_ids, ids)
        own_slots = np.arange(total, total + len(ids) - shared)
        extends_previous = shared == len(previous_ids) and ends
        previous_ids, path, total = ids, np.concatenate([path[:shared], own_slots]), total + len(own_slots)
        path_of[index] = path
        input_ids.append(ids[shared:])
        position_ids.append(np.arange(shared, len(ids)))
        if extends_previous:
            ends[-1], leaves[-1] = total, path
        else:
            ends.append(total)
            leaves.append(path)
    scored_positions = {
        index: np.flatnonzero(scored[batch.starts[index] : batch.starts[index + 1]]) for index in indices
    }
    source = np.concatenate([batch.starts[index] + scored_positions[index] for index in indices])
    return PackedBatch(
        input_ids=np.concatenate(input_ids).astype(np.int64),
        position_ids=np.concatenate(position_ids),
        branch_starts=np.asarray([0, *ends]),
        paths=np.concatenate(leaves),
        path_starts=np.cumsum([0, *map(len, leaves)]),
        select=np.concatenate([path_of[index][scored_positions[index] - 1] for index in indices]),
        targets=batch.ids[source].astype(np.int64),
        source=source,
        sequence=np.repeat(indices, [len(scored_positions[index]) for index in indices]),
    )
