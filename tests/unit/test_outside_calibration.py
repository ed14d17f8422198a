"""A calibration method from outside the repository: one file and one YAML; it fits the simulator in the learner."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from calibrated_rl.calibration.base import CalibrationMethod
from calibrated_rl.calibration.checked import build_method
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.slots import SIMULATOR
from tests.support.made_up_learners import LocalLearner, samples, save_model
from tests.support.outside_parts import part_outside

LATEST = '''
from dataclasses import dataclass

from calibrated_rl import CalibrationMethod, Positive

LOSS = "calibrated_rl.learner.losses.sft:SFT"

class LatestTurns(CalibrationMethod):
    """Fits the turns that humans gave last, and no logs."""

    @dataclass(frozen=True)
    class Config:
        turns: Positive = 8
        steps: Positive = 1

    def __init__(self, config):
        self.config = config

    def align(self, inputs):
        samples = [turn.sample for turn in inputs.extra[-self.config.turns :]]
        inputs.learner.load("simulator", inputs.base, seed=inputs.seed)
        nll = [inputs.learner.step("simulator", samples, LOSS)["loss"] for _ in range(self.config.steps)]
        inputs.learner.save("simulator", inputs.folder)
        inputs.progress(self.config.steps, self.config.steps)
        return {"simulator_monitor_nll": nll[-1], "nll_before": nll[0], "turns_fitted": float(len(samples))}

class Silent(LatestTurns):
    def align(self, inputs):
        return {}
'''
SETTINGS = """
calibration: {method: mine.py:LatestTurns, method_config: {turns: 4, steps: 6}}
arms: [start, calibrated_once]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return part_outside(tmp_path, monkeypatch, code=LATEST, settings=SETTINGS)


def method_of(settings: Path) -> CalibrationMethod:
    config = load_config(settings).calibration
    return build_method(config.method, config.method_config, "calibration.method_config")


@pytest.mark.slow  # DeepSpeed starts a process when it is imported
@pytest.mark.usefixtures("ranks_in_this_process")
def test_it_fits_the_simulator_that_is_served_then(settings: Path, tmp_path: Path) -> None:
    rank, steps = LearnerRank(LearnerConfig(micro_batch_tokens=128, threads=1)), list[tuple[int, int]]()
    base = save_model(tmp_path / "base")
    inputs: Any = SimpleNamespace(
        learner=LocalLearner(rank), base=base, folder=tmp_path / "aligned", seed=0,
        extra=[SimpleNamespace(sample=sample) for sample in samples()],
        progress=lambda done, of: steps.append((done, of)),
    )  # fmt: skip
    metrics = method_of(settings).align(inputs)
    assert metrics["turns_fitted"] == 4 and steps == [(6, 6)], "as the YAML says"
    assert metrics["simulator_monitor_nll"] < metrics["nll_before"]
    rank.load("uncalibrated", base, trainable=False)
    rank.load("read", tmp_path / "aligned", trainable=False)
    before, after, read = (rank.weights(name) for name in ("uncalibrated", SIMULATOR, "read"))
    assert all(torch.equal(after[name], read[name]) for name in after), "the slot and the folder have the same"
    assert any(not np.allclose(before[name], after[name]) for name in after)


def test_what_it_must_return_is_asked_for(settings: Path) -> None:
    settings.write_text(SETTINGS.replace("LatestTurns", "Silent"))
    with pytest.raises(UserCodeError, match="simulator_monitor_nll"):
        method_of(settings).align(SimpleNamespace(folder=Path()))  # type: ignore[arg-type]


def test_its_settings_are_checked_when_the_config_is_read(settings: Path) -> None:
    settings.write_text(SETTINGS.replace("steps: 6", "stpes: 6"))
    with pytest.raises(UserError, match="stpes'; did you mean 'calibration.method_config.steps'"):
        load_config(settings)
