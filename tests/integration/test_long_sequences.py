"""A sequence of 8,192 tokens on two ranks with all that saves memory at once: bfloat16 with float32 master weights,
checkpointing, packing and ZeRO 3. The steps are those of plain torch, one sequence at a time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.sample import Sample
from calibrated_rl.weight_sync.object_store import FullUpdate
from tests.support.made_up_models import VOCABULARY

LONG = 8192
STEPS = 2
OPTIMIZER = OptimizerConfig(learning_rate=3e-2, epsilon=1e-3, max_grad_norm=0.5)
Weights = dict[str, torch.Tensor]


def sample(length: int, seed: int) -> Sample:
    random = np.random.default_rng(seed)
    mask = random.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return Sample(
        tokens=TokenSequence(
            ids=random.integers(0, VOCABULARY, length).astype(np.int32), mask=mask,
            logprobs=np.where(mask, -4.5, np.nan).astype(np.float32),
            versions=np.where(mask, 0, -1).astype(np.int32), turns=np.zeros(length, np.int32),
        )
    )  # fmt: skip


SAMPLES = [sample(LONG, 0), *(sample(length, length) for length in (900, 40, 2000, 333))]


def make_model() -> Any:
    """Few heads: attention over so many tokens takes nearly all the time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=LONG, tie_word_embeddings=True, initializer_range=0.2,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("long")
    make_model().save_pretrained(path)
    return path


def plain_steps(folder: Path, dtype: torch.dtype) -> tuple[list[float], Weights]:
    """Steps of supervised fine-tuning in plain torch: losses, and the weights after them in ``dtype``. Gradients are
    computed in ``dtype`` and summed in float32; AdamW steps on float32 weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    names = dict(model.named_parameters())
    master = {name: weight.detach().float().clone().requires_grad_() for name, weight in names.items()}
    optimizer = torch.optim.AdamW(master.values(), lr=OPTIMIZER.learning_rate, eps=OPTIMIZER.epsilon, weight_decay=0.0)
    count = sum(int(each.tokens.mask[1:].sum()) for each in SAMPLES)
    losses = []
    for _ in range(STEPS):
        sums = {name: torch.zeros_like(weight) for name, weight in master.items()}
        total = 0.0
        for each in SAMPLES:
            ids, scored = torch.from_numpy(each.tokens.ids).long(), torch.from_numpy(each.tokens.mask)[1:]
            logs = model(ids[None]).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            loss = -logs[scored].sum() / count
            model.zero_grad()
            loss.backward()
            total += float(loss.detach())
            for name, weight in names.items():
                sums[name] += weight.grad.float()
        for name, weight in master.items():
            weight.grad = sums[name]
        torch.nn.utils.clip_grad_norm_(master.values(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for name, weight in names.items():
                weight.copy_(master[name])
        losses.append(total)
    return losses, {name: weight.detach().clone() for name, weight in names.items()}


@pytest.fixture(scope="module")
def plain(folder: Path) -> tuple[list[float], Weights]:
    """In float32."""
    return plain_steps(folder, torch.float32)


@pytest.fixture
def groups() -> Iterator[list[LearnerGroup]]:
    started: list[LearnerGroup] = []
    yield started
    for group in started:
        group.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_on_long_sequences_are_those_of_plain_torch(
    ray_session: None, folder: Path, plain: tuple[list[float], Weights], groups: list[LearnerGroup], dtype: str
) -> None:
    import ray

    config = LearnerConfig(
        ranks=2, zero_stage=3, dtype=dtype, gradient_checkpointing=True, micro_batch_tokens=LONG, threads=1, cpus=0.1,
        timeout_seconds=200,
    )  # fmt: skip
    groups.append(group := LearnerGroup(config))
    group.load("policy", folder, optimizer=OPTIMIZER)
    start = make_model().named_parameters()
    before = {name: weight.detach().to(getattr(torch, dtype)).float() for name, weight in start}
    metrics = [group.step("policy", [replace(each) for each in SAMPLES], SFT(SFT.Config())) for _ in range(STEPS)]
    update = group.weight_update("policy", 1)
    assert isinstance(update, FullUpdate)
    found = {name: weight.clone() for name, weight in ray.get(update.weights, timeout=180).items()}
    losses, expected = plain if dtype == "float32" else plain_steps(folder, torch.bfloat16)
    assert metrics[1]["loss"] < metrics[0]["loss"] - 0.05
    assert set(found) == set(expected) and all(weight.dtype == getattr(torch, dtype) for weight in found.values())
    if dtype == "float32":
        assert [each["loss"] for each in metrics] == pytest.approx(losses, rel=1e-5)
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=0, msg=name)
        return
    assert [each["loss"] for each in metrics] == pytest.approx(losses, rel=2e-3)

    def change(weights: Weights) -> torch.Tensor:
        return torch.cat([(weights[name].float() - weight).flatten() for name, weight in before.items()])

    ours, theirs = change(found), change(expected)
    error, rounding = (float((each - theirs).norm() / theirs.norm()) for each in (ours, change(plain[1])))
    # As near to the plain step in bfloat16 as that is to the step in float32.
    assert error < 1.5 * rounding + 1e-3 and error < 0.1, (error, rounding)
