"""Several simulators in place of one: which turns each is fitted to, whose turn it is, how far they disagree."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calibrated_rl.calibration.ensemble import (
    EnsembleSFT,
    alignment_of,
    bootstrap,
    mean_disagreement,
    members_of,
    turn_disagreements,
)
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.run.served_simulator import ServedSimulator
from calibrated_rl.training.policy_update import PolicyUpdate
from calibrated_rl.training.timers import UpdateTimers
from tests.support.paths import MICRO


def view(turns: list[int], mask: list[bool]) -> TokenSequence:
    size = len(turns)
    return TokenSequence(
        ids=np.zeros(size, np.int32), mask=np.asarray(mask), logprobs=np.zeros(size, np.float32),
        versions=np.zeros(size, np.int32), turns=np.asarray(turns, np.int32),
    )  # fmt: skip


def test_a_bootstrap_is_drawn_with_replacement_and_again_the_same() -> None:
    drawn = bootstrap(1000, (0, 10, 1))
    assert_array_equal(drawn, bootstrap(1000, (0, 10, 1)))
    assert len(drawn) == 1000 and drawn.min() >= 0 and drawn.max() < 1000
    assert abs(len(set(drawn.tolist())) / 1000 - (1 - 1 / math.e)) < 0.04
    assert any((bootstrap(1000, (0, 10, 1)) != bootstrap(1000, other)).any() for other in ((0, 10, 2), (1, 10, 1)))


def test_disagreement_by_turn_is_that_of_the_whole_turn_and_of_own_tokens_alone() -> None:
    """Turn 1 has two tokens, probable with 1/4 under one member and 3/4 under the other; on turn 3 they agree."""
    user = view([0, 1, 1, 2, 3], [False, True, True, False, True])
    one = np.log(np.array([0.9, 0.5, 0.5, 0.1, 0.2], np.float32))
    other = np.log(np.array([0.1, 1.0, 0.75, 0.9, 0.2], np.float32))
    assert_allclose(turn_disagreements(user, [one, other], 0), [math.log(0.25 / 0.5), 0.0], atol=1e-6)
    assert_allclose(turn_disagreements(user, [one, other], 1), [math.log(0.75 / 0.5), 0.0], atol=1e-6)
    assert mean_disagreement(user, [one, other], 1) == pytest.approx(math.log(1.5) / 2)
    assert mean_disagreement(view([0, 2], [False, False]), [one[:2], other[:2]], 0) == 0.0


def test_members_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("member-10", "member-2", "member-0", "member-of-none"):
        (tmp_path / name).mkdir()
    members = members_of(tmp_path)
    assert [path.name for path in members] == ["member-0", "member-2", "member-10"]
    assert {alignment_of(folder) for folder in (tmp_path, *members)} == {tmp_path}


class Recorder:
    """Stands for learner and pool: what they were told, in order."""

    def __init__(self) -> None:
        self.version, self.loaded = 0, []

    def load(self, slot: str, folder: Path, **_: Any) -> None:
        self.loaded.append(folder.name)

    def weight_update(self, slot: str, version: int) -> int:
        return version

    def publish(self, version: int) -> None:
        self.version = version


def test_members_are_served_in_turn_and_a_single_simulator_stays(tmp_path: Path) -> None:
    parts = Recorder()
    served = ServedSimulator(tmp_path, tmp_path / "uncalibrated", parts, parts)  # type: ignore[arg-type]
    served.load(tmp_path / "uncalibrated", version=0)
    served.serve_member(1)
    assert parts.loaded == ["uncalibrated"] and served.members == []
    for number in range(2):
        (tmp_path / "models" / "calibrated" / f"member-{number}").mkdir(parents=True)
    served.load(tmp_path / "models" / "calibrated")
    for update in (0, 1, 1, 2):
        served.serve_member(update)
    assert parts.loaded[1:] == ["calibrated", "member-0", "member-1", "member-0"] and parts.version == 4
    assert served.member == 0 and served.path_in_run == "models/calibrated/member-0"


def test_a_penalty_counts_for_the_credit_and_not_for_the_reward() -> None:
    config = load_config(MICRO)
    tokens = view([1, 2], [False, True])
    scenario = Scenario(id="s", split=Split.CALIBRATION, policy_instructions="", user_instructions="", greeting="")
    member = Dialogue(
        id="d", task="t", scenario=scenario, turns=(Turn(side=Side.POLICY, text="hi", source=Source.GREETING),),
        ending="x", outcome=Outcome(reward=1.0, success=True), kind="rollout", policy_tokens=tokens,
    )  # fmt: skip
    update = PolicyUpdate(config, None, None, UpdateTimers())  # type: ignore[arg-type]
    group = [member, replace(member, id="e")]
    assert update.advantages([group], 0).groups_with_signal == 0
    credited = update.advantages([group], 0, [[0.0, 0.5]])
    assert credited.rewards == [1.0, 1.0] and credited.groups_with_signal == 1
    assert credited.samples[0].advantage > 0 > credited.samples[1].advantage


def test_what_an_ensemble_does_not_allow_is_refused() -> None:
    method = "calibration.method=calibrated_rl.calibration.ensemble:EnsembleSFT"
    loaded = load_config(MICRO, [method, "calibration.method_config={members: 2, penalty: 0.1, folds: 2}"])
    assert EnsembleSFT(EnsembleSFT.Config(**loaded.calibration.method_config)).disagreement_every == 1
    for setting, reason in (("members=1", "at least 2"), ("penalty=-1", "at least 0"), ("folds=1", "at least 2 folds")):
        with pytest.raises(UserError, match=reason):
            load_config(MICRO, [method, f"calibration.method_config.{setting}"])
