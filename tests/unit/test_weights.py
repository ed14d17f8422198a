"""Weights on their way: the same bits arrive, whatever the shapes and dtypes and however they are cut into buckets."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.weight_sync.buckets import ALIGNMENT, SharedBucket, buckets_of
from calibrated_rl.weight_sync.tensors import Weights

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def made(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        f"layer.{i}": torch.randint(0, 250, shape, generator=random).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), max_size=3).map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=8
    ),
    st.integers(1, 600),
)
def test_the_same_bits_arrive(kinds: list[tuple[tuple[int, ...], torch.dtype]], most: int) -> None:
    tensors = made([shape for shape, _ in kinds], [dtype for _, dtype in kinds])
    weights, found = Weights(tensors), {}
    shared = SharedBucket()
    for bucket in buckets_of(weights, most):
        assert bucket.size <= most or len(bucket.offsets) == 1
        assert all(offset.start % ALIGNMENT == 0 for offset in bucket.offsets)
        shared.write(bucket, weights)
        there = torch.from_file(shared.path, shared=True, size=shared.size, dtype=torch.uint8)
        found |= {name: tensor.clone() for name, tensor in bucket.tensors(there)}
    shared.close()
    assert_same_bits(found, tensors)


def test_buckets_by_hand() -> None:
    tensors = made([(3, 5), (7,), (100,), ()], [torch.float32, torch.bfloat16, torch.float32, torch.float32])
    found = [[(p.name, p.start, p.end) for p in bucket.offsets] for bucket in buckets_of(Weights(tensors), 128)]
    # 60 and 14 bytes share the first; 400 bytes are more than a bucket; 4 would fit into neither.
    assert found == [[("layer.0", 0, 60), ("layer.1", 64, 78)], [("layer.2", 0, 400)], [("layer.3", 0, 4)]]
    assert buckets_of(Weights({}), 128) == []


def test_pickling_copies_no_bytes() -> None:
    transposed = torch.arange(12.0).reshape(3, 4).T
    tensors = made([(1000,), (30, 40)], [torch.float32, torch.bfloat16])
    weights, buffers = Weights(tensors | {"transposed": transposed}), []
    packed = pickle.dumps(weights, protocol=5, buffer_callback=buffers.append)
    assert len(packed) < 1000 and [buffer.raw().nbytes for buffer in buffers] == [4000, 2400, 48]
    assert np.shares_memory(np.frombuffer(buffers[0].raw(), np.uint8), tensors["layer.0"].numpy().view(np.uint8))
    received = pickle.loads(packed, buffers=[bytes(buffer.raw()) for buffer in buffers])
    assert_same_bits(dict(received), tensors | {"transposed": transposed})


def test_shared_memory_grows_and_leaves_nothing() -> None:
    shared, small, large = SharedBucket(), Weights({"a": torch.ones(3)}), Weights({"a": torch.full((5000,), 2.0)})
    for weights in (small, large, small):
        (bucket,) = buckets_of(weights, 10)
        shared.write(bucket, weights)
        there = torch.from_file(shared.path, shared=True, size=shared.size, dtype=torch.uint8)
        assert_same_bits(dict(bucket.tensors(there)), dict(weights))
    assert shared.size == 20_000
    path = shared.path
    shared.close()
    with pytest.raises(RuntimeError):
        torch.from_file(path, shared=True, size=shared.size, dtype=torch.uint8)
