"""Packing loses nothing, cuts nothing, and keeps to its budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.dialogue import TokenSequence
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.packing import PackedBatch, pack
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=25),
    st.integers(8, 50),
    st.integers(1, 4),
    st.integers(1, 3),
    st.floats(0, 1),
)
def test_every_scored_token_once_and_in_its_context(
    lengths: list[int], row_tokens: int, max_rows: int, ranks: int, share: float
) -> None:
    batch = batch_of(lengths, share)
    packs = pack(batch, row_tokens, max_rows, ranks=ranks)
    assert sources(packs) == np.flatnonzero(batch.scored).tolist()
    for p in packs:
        rows, width = p.input_ids.shape
        assert rows <= max_rows and width <= max(row_tokens, *lengths)
        ids, positions = p.input_ids.ravel(), p.position_ids.ravel()
        for at, target, source, index in zip(p.select, p.targets, p.source, p.sequence, strict=True):
            start = int(batch.starts[index])
            before = int(source) - start
            assert positions[at] == before - 1, "the position before the scored token"
            np.testing.assert_array_equal(ids[at - before + 1 : at + 1], batch.ids[start:source])
            assert target == batch.ids[source]
        assert len(np.unique(p.sequence)) == 1 + np.count_nonzero(np.diff(p.sequence)), "tokens stay together"


def test_first_fit_decreasing_by_hand() -> None:
    # 7 | 5, then 3 joins the 7, 3 joins the 5, 2 joins the 5: two full rows of ten.
    packs = pack(batch_of([3, 7, 2, 5, 3]), 10, 8)
    assert [p.input_ids.shape for p in packs] == [(2, 10)]
    np.testing.assert_array_equal(packs[0].position_ids[0], [*range(7), *range(3)])
    np.testing.assert_array_equal(packs[0].position_ids[1], [*range(5), *range(3), *range(2)])


def test_a_long_sequence_gets_a_row_of_its_own_length() -> None:
    packs = pack(batch_of([30, 4]), 10, 1)
    assert sorted(p.input_ids.shape for p in packs) == [(1, 4), (1, 30)]


def test_first_tokens_and_empty_sequences_are_left_out() -> None:
    assert pack(batch_of([1, 1, 1]), 10, 1) == []
    assert pack(batch_of([5, 5], share=0.0), 10, 1) == []


def test_rows_are_shared_out_over_ranks() -> None:
    assert len(pack(batch_of([10] * 6), 10, 6)) == 1
    assert [p.input_ids.shape[0] for p in pack(batch_of([10] * 6), 10, 6, ranks=2)] == [3, 3]


def test_pairs_stay_in_one_row() -> None:
    lengths = [6, 9, 3, 8, 5, 5, 9, 2]
    packs = pack(batch_of(lengths), 16, 2, unit=2)
    for p in packs:
        width = p.input_ids.shape[1]
        row_of = {int(s): int(at) // width for s, at in zip(p.sequence, p.select, strict=True)}
        assert all(row_of[s] == row_of[s ^ 1] for s in row_of)


def test_chosen_sequences_only() -> None:
    batch = batch_of([4, 5, 6])
    packs = pack(batch, 32, 4, chosen=np.asarray([2, 0]))
    assert {int(s) for p in packs for s in p.sequence} == {0, 2}


def test_weights_multiply_and_the_first_token_is_never_scored() -> None:
    tokens = sequence(4, share=1.0)
    sample = Sample(tokens=tokens, weight=2.0, token_weights=np.asarray([1, 2, 3, 4], np.float32))
    batch = SampleBatch.of([sample, Sample(tokens=tokens)])
    np.testing.assert_array_equal(batch.token_weights, [2, 4, 6, 8, 1, 1, 1, 1])
    np.testing.assert_array_equal(batch.scored, [False, True, True, True] * 2)
    with pytest.raises(AssertionError, match="no samples"):
        SampleBatch.of([])
