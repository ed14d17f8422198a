"""Compiled layers and loss: the same to rounding, and what was compiled is kept for the next run."""

import shutil
import zlib
from pathlib import Path

import pytest

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.losses.sft import SFT
from calibrated_rl.learner.model import cpu_instructions
from calibrated_rl.learner.rank import LearnerRank
from tests.support.made_up_learners import assert_same, big_epsilon, samples
from tests.support.made_up_models import make_model

pytestmark = pytest.mark.usefixtures("ranks_in_this_process")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a compiler")
def test_compiled_parts_agree_with_plain_ones_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save_pretrained(tmp_path / "tiny")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    found = []
    for compiled in (False, True):
        learner = LearnerRank(LearnerConfig(micro_batch_tokens=128, compile=compiled))
        learner.load("policy", tmp_path / "tiny", optimizer=big_epsilon())
        metrics = learner.step("policy", SampleBatch.of(samples(6)), SFT(SFT.Config()))
        found.append((metrics, learner.models["policy"].weights()))
    assert_same(*found)
    (kept,) = (tmp_path / ".cache/calibrated_rl/compiled").iterdir()
    assert kept.name == f"learner-{zlib.crc32(cpu_instructions()):08x}" and any(kept.rglob("*.so"))


def test_engines_keep_theirs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    assert engine_environment(EngineConfig(), "policy")["VLLM_CACHE_ROOT"] == "~/.cache/calibrated_rl/compiled/vllm"
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/mine")
    assert engine_environment(EngineConfig(), "policy")["VLLM_CACHE_ROOT"] == "/mine"
