"""A step for which memory does not suffice is taken with smaller micro-batches, and is the same step."""

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.out_of_memory import OutOfMemory, is_out_of_memory
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.models.tiny import make_tiny
from tests.support.made_up_learners import samples
from tests.support.made_up_models import make_model

LIMITED = """
import json, re, resource, sys
import numpy as np, torch
from pathlib import Path
from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.sample import Sample
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
torch.manual_seed(0)
shape = dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4, vocab_size=96)
LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, max_position_embeddings=512, **shape)).save_pretrained(folder)

def sample(seed, length):
    ids = np.random.default_rng(seed).integers(0, 96, length).astype(np.int32)
    nothing = np.full(length, np.nan, np.float32)
    return Sample(tokens=TokenSequence(
        ids=ids, mask=np.ones(length, bool), logprobs=nothing, versions=np.full(length, -1, np.int32),
        turns=np.zeros(length, np.int32),
    ))

small, large = (SampleBatch.of([sample(i, 256) for i in range(count)]) for count in (2, 32))

def taught(learner):
    loss = SFT(SFT.Config())
    return learner.step("policy", small, loss), learner.step("policy", large, loss)

def start():
    # With a large epsilon, nearly linear in the gradient.
    optimizer = OptimizerConfig(learning_rate=1e-2, epsilon=1e-2, max_grad_norm=0)
    learner = LearnerRank(LearnerConfig(micro_batch_tokens=8192, threads=1))
    learner.load("policy", folder, optimizer=optimizer)
    return learner

def limit(megabytes):
    now = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 2**20, resource.RLIM_INFINITY))

plenty = start()
_, expected = taught(plenty)
weights = plenty.weights("policy")
scores, _ = plenty.score("policy", large)
assert expected["micro_batch_tokens"] == 8192
del plenty

scarce = start()
scarce.step("policy", small, SFT(SFT.Config()))
limit(130)
found = scarce.step("policy", large, SFT(SFT.Config()))
assert 256 <= found["micro_batch_tokens"] <= 4096, found
scored, _ = scarce.score("policy", large)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for name, value in scarce.weights("policy").items():
    torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=0, msg=name)
np.testing.assert_allclose(scored[~np.isnan(scored)], scores[~np.isnan(scores)], atol=1e-3)
assert abs(found["loss"] - expected["loss"]) < 1e-4, (found, expected)
assert found["tokens"] == expected["tokens"] and found["optimizer_steps"] == 1
"""

ENGINE = """
import asyncio, os, resource, sys
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine import Replica
from calibrated_rl.inference.engine_arguments import engine_environment

async def start():
    config = EngineConfig(kv_cache_mib=4096, least_kv_cache_mib=16, own_process=sys.argv[2] == "process")
    os.environ.update(engine_environment(config, "policy"))
    resource.setrlimit(resource.RLIMIT_AS, (5 * 2**30, 5 * 2**30))
    replica = Replica(sys.argv[1], config)
    print("started with", await replica.start())
    replica.shutdown()

if __name__ == "__main__":
    asyncio.run(start())
"""


@pytest.mark.parametrize("engine", ["process", "thread"])
def test_an_engine_without_room_starts_with_a_smaller_cache(tmp_path: Path, engine: str) -> None:
    """In a process of its own: the engine's, which takes 2.5 GiB without its cache, may have 5 GiB of addresses."""
    model = make_tiny(tmp_path / "model", ["which day ?", "table please"] * 20, 0)
    (tmp_path / "start.py").write_text(ENGINE)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "start.py"), str(model), engine], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert "can't allocate memory" in done.stdout + done.stderr and done.returncode == 0, done.stderr[-3000:]
    (found,) = re.findall(r"started with (\d+)", done.stdout)
    assert 16 <= int(found) < 4096


def test_a_step_without_room_is_taken_in_smaller_ones(tmp_path: Path) -> None:
    """In a process of its own, whose address space is limited."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "micro-batches of 4096 tokens from now on" in done.stderr


@pytest.mark.usefixtures("ranks_in_this_process")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_failed_step_has_added_up_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    make_model().save_pretrained(tmp_path)
    results = []
    for failing in (False, True):
        learner = LearnerRank(LearnerConfig(micro_batch_tokens=512 if failing else 256, dtype=dtype))
        learner.load("policy", tmp_path, optimizer=OptimizerConfig(learning_rate=1e-2, epsilon=1e-2))
        model, backward, calls = learner.models["policy"], learner.models["policy"].backward, itertools.count()

        def fail_once(loss: torch.Tensor, *, last: bool, backward: Any = backward, calls: Any = calls) -> None:
            if next(calls) == 1:
                raise torch.OutOfMemoryError("no more")
            backward(loss, last=last)

        if failing:
            monkeypatch.setattr(model, "backward", fail_once)
        found = [learner.step("policy", SampleBatch.of(samples(40)), SFT(SFT.Config())) for _ in range(2)]
        results.append((found, learner.weights("policy")))
    (expected, weights), (found, after) = results
    assert found == expected and found[0]["micro_batch_tokens"] == 256
    assert all(torch.equal(weights[name], after[name]) for name in weights)


@pytest.mark.usefixtures("ranks_in_this_process")
@pytest.mark.parametrize("setting", [{"micro_batch_tokens": 511}, {"zero_stage": 1}])
def test_where_it_cannot_be_smaller_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, int]
) -> None:
    make_model().save_pretrained(tmp_path)
    learner = LearnerRank(LearnerConfig(**setting))
    learner.load("policy", tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 7 GiB")

    monkeypatch.setattr(learner.models["policy"], "backward", fail)
    with pytest.raises(UserError, match=r"tokens \(tried to allocate 7 GiB\): lower learner.micro_batch_tokens"):
        learner.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))


@pytest.mark.usefixtures("ranks_in_this_process")
def test_the_optimizer_is_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save_pretrained(tmp_path)
    learner, asked = LearnerRank(LearnerConfig()), itertools.count()
    learner.load("policy", tmp_path)

    def fail(_: float | None) -> None:
        next(asked)
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(learner.models["policy"], "update", fail)
    with pytest.raises(UserError, match=r"out of memory in the optimizer \(no more\)"):
        learner.step("policy", SampleBatch.of(samples()), SFT(SFT.Config()))
    assert next(asked) == 1


def test_other_errors_pass() -> None:
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError, match="shapes differ"), OutOfMemory():
        raise RuntimeError("shapes differ")
    with OutOfMemory() as memory:
        torch.empty(2**60)
    assert "can't allocate memory" in memory.message
