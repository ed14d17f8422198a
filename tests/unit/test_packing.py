"""Packing loses nothing, cuts nothing, computes nothing twice, and keeps to its budget."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.attention import LONG, SHORT, side_by_side, variable_length
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.packing import MAX_PATHS, PackedBatch, pack
from calibrated_rl.learner.sample import Sample


def sequence(length: int, seed: int = 0, share: float = 0.5) -> TokenSequence:
    rng = np.random.default_rng((length, seed))
    mask = rng.random(length) < share
    return TokenSequence(
        ids=rng.integers(1, 100, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, -2.0, np.nan).astype(np.float32),
        versions=np.where(mask, 0, -1).astype(np.int32),
        turns=np.zeros(length, np.int32),
    )


def batch_of(lengths: list[int], share: float = 1.0) -> SampleBatch:
    return SampleBatch.of([Sample(tokens=sequence(n, i, share)) for i, n in enumerate(lengths)])


def sources(packs: list[PackedBatch]) -> list[int]:
    return sorted(int(i) for p in packs for i in p.source)


def sees(packed: PackedBatch, place: int) -> list[int]:
    """The token ids on the path to ``place`` of [T], itself included."""
    branch = int(np.searchsorted(packed.branch_starts, place, side="right")) - 1
    path = packed.paths[packed.path_starts[branch] : packed.path_starts[branch + 1]]
    return packed.input_ids[path[: int(np.flatnonzero(path == place)[0]) + 1]].tolist()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=0, max_size=12), min_size=1, max_size=20),
    st.integers(8, 50),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_every_scored_token_once_and_in_its_context(
    texts: list[list[int]], budget: int, ranks: int, share: float
) -> None:
    """Three words, so that much is shared: whatever the tree looks like, each token sees its own sequence."""
    samples = []
    for seed, text in enumerate(texts):
        tokens = sequence(len(text), seed, share)
        samples.append(Sample(tokens=dataclasses.replace(tokens, ids=np.asarray(text, np.int32))))
    batch = SampleBatch.of(samples)
    packs = pack(batch, budget, ranks=ranks)
    assert sources(packs) == np.flatnonzero(batch.scored).tolist()
    for p in packs:
        assert len(p.input_ids) <= max(budget, *map(len, texts), 0)
        assert len(p.input_ids) == len({tuple(sees(p, place)) for place in range(len(p.input_ids))}), "computed twice"
        for place in range(len(p.input_ids)):
            assert p.position_ids[place] == len(sees(p, place)) - 1
        for at, target, source, index in zip(p.select, p.targets, p.source, p.sequence, strict=True):
            assert sees(p, int(at)) == batch.ids[batch.starts[index] : source].tolist()
            assert target == batch.ids[source]
        assert len(np.unique(p.sequence)) == 1 + np.count_nonzero(np.diff(p.sequence)), "tokens stay together"


def of_ids(*texts: list[int]) -> SampleBatch:
    """Sequences of which all tokens are scored."""
    return SampleBatch.of(
        [Sample(tokens=dataclasses.replace(sequence(len(t), share=1.0), ids=np.asarray(t, np.int32))) for t in texts]
    )


def test_what_is_shared_is_computed_once_by_hand() -> None:
    # The last token is predicted, not read. Read: 1 2 3, 1 2 4 5, 1 2, 9.
    (packed,) = pack(of_ids([1, 2, 3, 7], [1, 2, 4, 5, 7], [1, 2, 7], [9, 7]), 100)
    assert packed.input_ids.tolist() == [1, 2, 3, 4, 5, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 3, 0]
    assert packed.branch_starts.tolist() == [0, 3, 5, 6], "what only goes on is no branch of its own"
    assert np.split(packed.paths, packed.path_starts[1:-1])[1].tolist() == [0, 1, 3, 4]
    chosen = packed.sequence == 2
    assert packed.select[chosen].tolist() == [0, 1] and packed.targets[chosen].tolist() == [2, 7]


def test_micro_batches_are_about_equal() -> None:
    alone = [[first, *range(50, 60)] for first in range(30)]
    sizes = [len(p.input_ids) for p in pack(of_ids(*alone), 100)]
    assert sizes == [100, 100, 100]
    sizes = [len(p.input_ids) for p in pack(of_ids(*alone[:11]), 100, ranks=2)]
    assert sorted(sizes) == [50, 60]


def test_a_long_sequence_gets_a_micro_batch_of_its_own() -> None:
    packs = pack(of_ids([1] * 30, [2] * 4), 10)
    assert sorted(len(p.input_ids) for p in packs) == [3, 29]


def test_what_follows_the_last_scored_token_is_not_computed() -> None:
    tokens = dataclasses.replace(sequence(20, share=1.0), mask=np.arange(20) == 4)
    (packed,) = pack([Sample(tokens=tokens)], 100)
    assert len(packed.input_ids) == 4 and packed.source.tolist() == [4]


def test_first_tokens_and_empty_sequences_are_left_out() -> None:
    assert pack(batch_of([1, 1, 1]), 10) == []
    assert pack(batch_of([5, 5], share=0.0), 10) == []


def test_much_sharing_does_not_fill_memory_with_paths() -> None:
    texts = [[*range(1, 40), last, 7] for last in range(100, 140)]
    packs = pack(of_ids(*texts), 60)
    assert all(len(p.paths) <= MAX_PATHS * 60 for p in packs) and len(packs) == 7


def test_pairs_stay_together_in_their_order() -> None:
    packs = pack(batch_of([6, 9, 3, 8, 5, 5, 9, 2]), 16, unit=2)
    assert len(packs) > 1
    for p in packs:
        order = p.sequence[np.flatnonzero(np.diff(p.sequence, prepend=-1))].tolist()
        assert order[1::2] == [first + 1 for first in order[::2]]


def test_lengths_for_a_kernel_by_hand() -> None:
    """Queries of a branch stand at the end of its keys."""
    (packed,) = pack(of_ids([1, 2, 3, 7], [1, 2, 4, 5, 7], [9, 7]), 100)
    layout = variable_length(packed)
    assert layout.branch_starts.tolist() == [0, 3, 5, 6] and layout.path_starts.tolist() == [0, 3, 7, 8]
    assert layout.paths is not None and layout.paths.tolist() == [0, 1, 2, 0, 1, 3, 4, 5]
    assert (layout.longest_branch, layout.longest_path) == (3, 4)
    alone = variable_length(pack(of_ids([1, 2, 3], [4, 5, 6, 7]), 100)[0])
    assert alone.paths is None and torch.equal(alone.branch_starts, alone.path_starts)


def assert_each_token_asks_its_own_path(packed: PackedBatch) -> None:
    layout = side_by_side(packed)
    flat = torch.cat([batch.queries.flatten() for batch in layout.batches])
    assert flat[layout.slots].tolist() == list(range(len(packed.input_ids)))
    seen = []
    for batch in layout.batches:
        count, longest = batch.keys.shape
        places = torch.arange(longest)
        ago = (places[:, None] - places).expand(count, -1, -1) if batch.distance is None else batch.distance
        assert ago.shape == (count, batch.queries.shape[1], longest) and (ago >= 0).any(-1).all(), "a row sees nothing"
        rows = itertools.product(range(count), range(ago.shape[1]))
        seen += [batch.keys[row][ago[row, query] >= 0].tolist() for row, query in rows]
    for branch in range(len(packed.branch_starts) - 1):
        path = packed.paths[packed.path_starts[branch] : packed.path_starts[branch + 1]].tolist()
        for token in range(packed.branch_starts[branch], packed.branch_starts[branch + 1]):
            assert seen[int(layout.slots[token])] == path[: path.index(token) + 1]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.floats(0.3, 1))
def test_every_token_asks_its_own_path(lengths: list[int], share: float) -> None:
    for packed in pack(batch_of(lengths, share), 64):
        assert_each_token_asks_its_own_path(packed)


@given(
    st.lists(st.tuples(st.integers(100, 180), st.lists(st.integers(1, 60), min_size=1, max_size=4)), max_size=3),
    st.lists(st.integers(1, 40), max_size=3),
)
@settings(max_examples=40)
def test_short_branches_of_long_paths_ask_by_themselves(groups: list[tuple[int, list[int]]], alone: list[int]) -> None:
    ids = itertools.count(10_000)
    texts = [[next(ids) for _ in range(length)] for length in alone]
    for beginning, ends in groups:
        first = [next(ids) for _ in range(beginning)]
        texts += [[*first, *(next(ids) for _ in range(end))] for end in ends]
    for packed in pack(of_ids(*texts), 700) if texts else []:
        assert_each_token_asks_its_own_path(packed)
        apart = [batch for batch in side_by_side(packed).batches if batch.distance is not None]
        own, path = np.diff(packed.branch_starts), np.diff(packed.path_starts)
        assert sum(len(batch.keys) for batch in apart) == int(((path >= LONG) & (own <= SHORT * path)).sum())


def test_chosen_sequences_only() -> None:
    batch = batch_of([4, 5, 6])
    packs = pack(batch, 32, indices_to_pack=np.asarray([2, 0]))
    assert {int(s) for p in packs for s in p.sequence} == {0, 2}


def test_weights_multiply_and_the_first_token_is_never_scored() -> None:
    tokens = sequence(4, share=1.0)
    sample = Sample(tokens=tokens, weight=2.0, token_weights=np.asarray([1, 2, 3, 4], np.float32))
    batch = SampleBatch.of([sample, Sample(tokens=tokens)])
    np.testing.assert_array_equal(batch.token_weights, [2, 4, 6, 8, 1, 1, 1, 1])
    np.testing.assert_array_equal(batch.scored, [False, True, True, True] * 2)
    with pytest.raises(AssertionError, match="no samples"):
        SampleBatch.of([])
