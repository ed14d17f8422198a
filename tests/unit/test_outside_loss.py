"""A loss from outside the repository: one file and one YAML; the learner steps with it."""

from pathlib import Path

import numpy as np
import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.learner.batch import SampleBatch
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.rank import LearnerRank
from tests.support.made_up_learners import samples, save_model
from tests.support.outside_parts import part_outside

PLAIN = '''
from dataclasses import dataclass

from calibrated_rl import Loss, LossOutput, Share

class PolicyGradient(Loss):
    """``-A log pi``, and a pull of all log-probs towards a target."""

    @dataclass(frozen=True)
    class Config:
        target: float = 0.0
        pull: Share = 0.0

    def __init__(self, config):
        self.config = config

    def __call__(self, inputs):
        distance = (inputs.logprobs - self.config.target) ** 2
        values = -inputs.advantages * inputs.logprobs + self.config.pull * distance
        return LossOutput(
            loss=values.sum() / inputs.totals.tokens, means={"distance": (distance.detach().sum(), len(distance))}
        )
'''
SETTINGS = """
training: {loss: mine.py:PolicyGradient, loss_config: {target: -2.0, pull: 0.5}}
arms: [start, interactive]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return part_outside(tmp_path, monkeypatch, code=PLAIN, settings=SETTINGS)


@pytest.mark.slow  # DeepSpeed starts a process when it is imported
@pytest.mark.usefixtures("ranks_in_this_process")
def test_the_learner_takes_a_step_with_it(settings: Path, tmp_path: Path) -> None:
    loss = load_config(settings).training.loss_of("interactive")
    rank = LearnerRank(LearnerConfig(micro_batch_tokens=128, threads=1))
    rank.load("policy", save_model(tmp_path / "model"), optimizer=OptimizerConfig(learning_rate=1e-2))
    batch = SampleBatch.of(samples())
    logprobs = rank.score("policy", batch)[0][batch.scored].astype(np.float64)
    sequence = batch.sequence_of[batch.scored]
    advantages = np.array([sample.advantage for sample in samples()])[sequence]
    distance = (logprobs + 2.0) ** 2
    metrics = rank.step("policy", batch, loss)
    assert metrics["loss"] == pytest.approx((-advantages * logprobs + 0.5 * distance).mean(), abs=1e-5)
    assert metrics["distance"] == pytest.approx(distance.mean(), rel=1e-5)
    after = rank.step("policy", batch, loss)
    assert after["loss"] < metrics["loss"], "the step went down its gradient"


def test_its_settings_are_checked_when_the_config_is_read(settings: Path) -> None:
    settings.write_text(SETTINGS.replace("pull: 0.5", "pull: 2"))
    with pytest.raises(UserError, match="pull"):
        load_config(settings)
