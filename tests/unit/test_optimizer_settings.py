"""The optimizer's settings come from YAML: each once, for the policy's training and for every fit by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.sft import fine_tune
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import AdamWConfig, OptimizerConfig
from calibrated_rl.learner.sample import Sample
from tests.support.paths import MICRO

OPTIMIZER = "optimizer={beta1: 0.8, beta2: 0.95, epsilon: 1e-6, weight_decay: 0.1, max_grad_norm: 0.5}"


class Recorder:
    """In place of the learner: notes what it is loaded with."""

    def __init__(self) -> None:
        self.loaded: list[OptimizerConfig] = []

    def load(self, slot: str, base: Path, *, optimizer: OptimizerConfig, **named: Any) -> None:
        self.loaded.append(optimizer)

    def evaluate(self, slot: str, samples: Any) -> dict[str, float]:
        return {"weighted_nll": 1.0 + len(self.loaded)}

    def step(self, *arguments: Any, **named: Any) -> None: ...

    def save(self, *arguments: Any) -> None: ...


def fit(sft: SFTConfig) -> list[OptimizerConfig]:
    learner: Any = Recorder()
    samples = [Sample(tokens=TokenSequence.unsampled(np.zeros(3, np.int32)))]
    fine_tune(learner, "simulator", Path("base"), samples, samples, sft, Path("folder"), 0)
    return learner.loaded  # type: ignore[no-any-return]


def test_a_fit_has_its_own_optimizer_also_where_it_goes_back_to_its_best_epoch() -> None:
    config = load_config(MICRO, [f"calibration.sft.{OPTIMIZER}", "calibration.sft.warmup_steps=3"])
    sft = config.calibration.sft
    own = AdamWConfig(beta1=0.8, beta2=0.95, epsilon=1e-6, weight_decay=0.1, max_grad_norm=0.5)
    assert fit(sft) == [own.at(sft.learning_rate, 3)] * 2
    assert config.training.optimizer == config.policy.warm_start.optimizer == AdamWConfig()


def test_what_nobody_sets_is_as_ever() -> None:
    assert AdamWConfig() == AdamWConfig(beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    assert fit(SFTConfig())[0] == OptimizerConfig(learning_rate=2e-3, warmup_steps=20)
    assert load_config(MICRO).training.warmup_steps == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.optimizer.beta2=1", "training.optimizer.beta2 is 1: it must be at least 0 and below 1"),
        ("training.optimizer.max_grad_norm=-1", "training.optimizer.max_grad_norm is -1: it must be at least 0"),
        ("calibration.sft.optimizer.weight_decay=2", "calibration.sft.optimizer.weight_decay is 2"),
        ("training.optimizer.learning_rate=0.1", "unknown key 'training.optimizer.learning_rate'; valid keys: beta1"),
        ("training.optimizer.warmup_steps=3", "unknown key 'training.optimizer.warmup_steps'"),
        ("learner.max_grad_norm=1", "learner.max_grad_norm is called training.optimizer.max_grad_norm, "),
    ],
)
def test_each_is_set_in_one_place_and_in_its_range(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(MICRO, [change])
