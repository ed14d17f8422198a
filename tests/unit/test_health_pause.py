"""An arm that is paused for its simulator's health, on the made-up run of ``test_arm_accounts.py``: at a checkpoint,
with one message; the same settings do not go on, a higher threshold does, as if nothing had been."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.config.sections import TrainingConfig
from calibrated_rl.data.dialogue import Split
from calibrated_rl.health.config import HealthConfig
from calibrated_rl.health.limits import Unhealthy
from calibrated_rl.inference.turns import GenerateRequest
from calibrated_rl.rollout.statistics import BrokenTry, RolloutStatistics
from calibrated_rl.study.compare import compare_populations
from calibrated_rl.training.arm_run import ArmRun
from tests.support.made_up_pools import by_seed
from tests.support.made_up_rollouts import SCENARIO
from tests.unit.test_arm_accounts import MadeUpRun, audited, log_of, metrics_of, train

LOG = log_of(SCENARIO)
HELPS = "hello i want a table how can i help you ?"


def helping(share: float) -> Any:
    """A simulator that offers help in so many of its turns."""

    def say(request: GenerateRequest) -> str:
        return HELPS if np.random.default_rng(request.seed + 3).random() < share else by_seed(request)

    return say


def training(**changes: Any) -> TrainingConfig:
    values = {"updates": 4, "tokens_per_update": 120, "group_size": 2, "checkpoint_every": 3}
    return TrainingConfig(**(values | changes))


def thresholds(highest: float) -> HealthConfig:
    return HealthConfig(
        detectors=["role_inversion", "empty_turn"], thresholds={"role_inversion": highest}, least_turns=8
    )


def health_metrics(arm: ArmRun) -> list[tuple[int, str, float]]:
    """Without the lower limits, which are logged for thresholds."""
    return [
        (m["update"], m["name"], m["value"]) for m in arm.metrics
        if m["name"].startswith("health_") and not m["name"].endswith("_low")
    ]  # fmt: skip


@pytest.mark.parametrize("every", [3, 0])
def test_it_pauses_at_a_checkpoint_and_goes_on_with_a_higher_threshold(tmp_path: Path, every: int) -> None:
    whole = train(MadeUpRun(tmp_path / "whole", training(), helping(0.6), 0, thresholds(0.95)))
    assert len(metrics_of(whole, "health_role_inversion")) == 4

    folder, settings = tmp_path / "paused", training(checkpoint_every=every)
    with pytest.raises(
        Unhealthy, match="interactive \\(seed 0\\) is paused after update 1: role_inversion in 0"
    ) as paused:
        train(MadeUpRun(folder, settings, helping(0.6), 0, thresholds(0.2)))
    assert f'such as "{HELPS}"' in str(paused.value) and "in human logs 0.000 of" in str(paused.value)
    assert [path.name for path in (folder / "checkpoints" / "interactive-0").iterdir()] == ["update-000001"]

    again = MadeUpRun(folder, settings, helping(0.6), 0, thresholds(0.25))
    with pytest.raises(Unhealthy, match="is paused after update 1: "):
        train(again)
    assert not again.policy.asked, "it says so before anything is sampled"

    run = MadeUpRun(folder, settings, helping(0.6), 0, thresholds(0.95))
    arm = train(run)
    audited(run, arm)
    assert health_metrics(arm) == health_metrics(whole)


def test_without_a_threshold_rates_are_counted_and_nothing_stops(tmp_path: Path) -> None:
    arm = train(MadeUpRun(tmp_path, training(), helping(1.0), 0))
    assert metrics_of(arm, "health_role_inversion") == [1.0] * 4 and not metrics_of(arm, "health_role_inversion_low")
    assert metrics_of(arm, "health_empty_turn") == [0.0] * 4


def test_after_the_last_update_it_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "calibrated_rl")
    arm = train(MadeUpRun(tmp_path, training(updates=1), helping(1.0), 0, thresholds(0.2)))
    assert arm.updates == 1 and any("in its last update: role_inversion in 1.000" in line for line in caplog.messages)


def test_turns_that_broke_a_dialogue_count_though_nothing_learns_from_it(tmp_path: Path) -> None:
    def silent(request: GenerateRequest) -> str:
        return "" if np.random.default_rng(request.seed + 1).random() < 0.3 else by_seed(request)

    run = MadeUpRun(tmp_path, training(), silent, 0)
    run.cluster.collector.statistics = RolloutStatistics()
    arm = train(run)
    assert all(0.1 < rate < 0.5 for rate in metrics_of(arm, "health_empty_turn"))
    statistics = run.cluster.collector.statistics
    found = sum(
        r * n
        for r, n in zip(metrics_of(arm, "health_empty_turn"), metrics_of(arm, "health_empty_turn_turns"), strict=True)
    )
    assert round(found) == statistics.dropped["user_empty"], "each of them, once"


def test_a_simulator_that_is_measured_answers_for_the_tries_that_it_broke(tmp_path: Path) -> None:
    def silent(request: GenerateRequest) -> str:
        return "" if np.random.default_rng(request.seed + 1).random() < 0.3 else by_seed(request)

    run: Any = MadeUpRun(tmp_path, training(), silent, 0)
    run.cluster.background.run = lambda *arguments: None
    statistics = run.cluster.collector.statistics = RolloutStatistics()
    statistics.remember_broken("evaluation", BrokenTry("earlier", LOG.scenario, LOG.turns, 1))
    profile, _, health = compare_populations(run, run.inputs.logs[Split.MONITOR])
    empty, broken = health["empty_turn"], statistics.dropped["user_empty"]
    assert profile["user_turns"]["mean"] == 2.0
    assert empty["turns"] == 2 * statistics.tries_of("evaluation")["whole"] + broken, "without what was there before"
    assert round(empty["mean"] * empty["turns"]) == broken > 10
