"""Sums of bfloat16 gradients in float32, without DeepSpeed (with it: ``test_learner.py``)."""

import pytest
import torch

from calibrated_rl.learner.accumulation import Float32Sums


def gradient(weight: torch.Tensor, sums: Float32Sums, parts: torch.Tensor) -> torch.Tensor:
    """After one backward pass a row of ``parts``, whose gradient is that row; every gradient is looked at."""
    weight.grad = None
    for index, row in enumerate(parts):
        sums.begin(last=index == len(parts) - 1)
        (weight * row).sum().backward()
        sums.end()
        assert (weight.grad is None) == (index < len(parts) - 1)
    assert weight.grad is not None
    return weight.grad.clone()


def test_a_sum_is_rounded_once() -> None:
    """256 and many ones: in bfloat16 each of them is rounded away."""
    weight = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    sums, parts = Float32Sums([weight]), torch.ones(65, 2, dtype=torch.bfloat16)
    parts[0] = torch.tensor([256.0, -512.0])
    assert gradient(weight, sums, parts).tolist() == [320.0, -448.0]
    total = torch.zeros(2, dtype=torch.bfloat16)
    for row in parts:
        total += row
    assert total.tolist() == [256.0, -512.0]


def test_sums_begin_anew_with_each_step() -> None:
    weight = torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    sums, parts = Float32Sums([weight]), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    for _ in range(2):
        assert gradient(weight, sums, parts).tolist() == [4.0, 6.0]
        assert gradient(weight, sums, parts[:1]).tolist() == [1.0, 2.0]
    sums.begin(last=False)
    (weight * 5).sum().backward()
    sums.drop()
    assert gradient(weight, sums, parts).tolist() == [4.0, 6.0]


def test_a_parameter_that_leaves_half_way_is_no_silent_loss() -> None:
    weight, other = (torch.zeros(2, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    sums = Float32Sums([weight, other])
    sums.begin(last=False)
    (weight + other).sum().backward()
    sums.end()
    sums.begin(last=True)
    weight.sum().backward()
    with pytest.raises(AssertionError, match="none in the last micro-batch"):
        sums.end()
