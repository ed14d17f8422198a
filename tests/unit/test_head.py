"""The vocabulary projection in chunks: exact against the full logits, whatever the chunks."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from calibrated_rl.learner import head
from calibrated_rl.learner.head import ScoringHead, chunk_width

VOCABULARY, SIZE, POSITIONS = 203, 16, 30


def plain(linear: nn.Linear, hidden: Tensor, targets: Tensor, cap: float | None, temperature: float) -> list[Tensor]:
    logits = linear(hidden)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    logs = torch.log_softmax(logits / temperature, -1)
    return [logs.gather(-1, targets[:, None])[:, 0], -(logs.exp() * logs).sum(-1)]


@pytest.fixture(params=[1, 50, VOCABULARY])
def narrowest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Chunks of five words, of fifty with a remainder, and one for all."""
    monkeypatch.setattr(head, "MIN_CHUNK_WIDTH", request.param)
    yield


@pytest.mark.usefixtures("narrowest")
@pytest.mark.parametrize(
    ("bias", "cap", "temperature", "entropy_gradient"),
    [(False, None, 1.0, False), (False, None, 1.0, True), (True, None, 0.7, True), (True, 4.0, 0.7, True)],
)
def test_values_and_gradients_equal_those_of_full_logits(
    bias: bool, cap: float | None, temperature: float, entropy_gradient: bool
) -> None:
    torch.manual_seed(0)
    linear, hidden = nn.Linear(SIZE, VOCABULARY, bias=bias), 4 * torch.randn(POSITIONS, SIZE)
    targets = torch.randint(VOCABULARY, (POSITIONS,))
    weights = torch.randn(2, POSITIONS)
    found = []
    for chunks in (False, True):
        linear.zero_grad()
        given_hidden = hidden.clone().requires_grad_()
        values = (
            list(ScoringHead(linear, cap)(given_hidden, targets, temperature, entropy_gradient))
            if chunks
            else plain(linear, given_hidden, targets, cap, temperature)
        )
        loss = (weights[0] * values[0]).sum()
        (loss + (weights[1] * values[1]).sum() if entropy_gradient else loss).backward()
        gradients = [given_hidden.grad, *(parameter.grad for parameter in linear.parameters())]
        assert values[1].requires_grad is entropy_gradient or not chunks
        found.append([value.detach().clone() for value in [*values, *gradients] if value is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_frozen_weights_get_no_gradient_and_pass_it_on() -> None:
    linear = nn.Linear(SIZE, VOCABULARY, bias=False).requires_grad_(False)
    hidden = torch.randn(3, SIZE, requires_grad=True)
    ScoringHead(linear, None)(hidden, torch.tensor([0, 5, 202]))[0].sum().backward()
    assert linear.weight.grad is None and hidden.grad is not None and hidden.grad.abs().sum() > 0


@given(st.integers(0, 100_000), st.integers(1, 300_000))
def test_strips_are_few_enough_words(positions: int, vocabulary: int) -> None:
    width = chunk_width(positions, vocabulary)
    assert 1 <= width <= vocabulary
    if width > head.MIN_CHUNK_WIDTH:
        assert width * positions <= head.CHUNK_ELEMENTS and width <= -(-vocabulary // head.VOCAB_CHUNKS)
