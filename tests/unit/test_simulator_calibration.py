"""When an arm aligns its simulator again, and what an ensemble's disagreement takes from returns: the decisions alone,
with a learner that says log-probs made up by hand."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrated_rl.calibration.trigger import Reason, TriggerConfig
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import CalibrationConfig
from calibrated_rl.data.dialogue import Split, TokenSequence
from calibrated_rl.training.simulator_calibration import SimulatorCalibration

A, B = Path("member-0"), Path("member-1")


class Arm:
    """An arm of a run whose parts answer what a test sets."""

    def __init__(self, calibration: CalibrationConfig, *, shares: Any = (), records: Any = (), members: Any = ()):
        self.name, self.seed, self.updates = "calibrated", 0, 0
        self.metrics: dict[str, float] = {}
        self.timers = SimpleNamespace(measure=lambda name: nullcontext())
        self.shift = SimpleNamespace(records=lambda: list(records))
        self.loaded: list[Path] = []
        self.log_probs: dict[Path, list[Any]] = {}
        measured = iter(shares)
        method = SimpleNamespace(
            effective_share=lambda inputs: next(measured), disagreement_every=2, disagreement_penalty=0.5
        )
        inputs = SimpleNamespace(
            config=RunConfig(calibration=calibration), calibration=method, folder=Path(), task=None,
            human_logs=lambda split: {Split.CALIBRATION: [], Split.MONITOR: []}[split], progress=lambda name: None,
        )  # fmt: skip
        learner = SimpleNamespace(log_probs=lambda slot, views, temperature: self.log_probs[self.loaded[-1]])
        self.simulator = SimpleNamespace(
            members=list(members), member=1, uncalibrated=Path(), load_in_learner=self.loaded.append
        )
        chat = SimpleNamespace(chat=None)
        self.run: Any = SimpleNamespace(
            inputs=inputs, simulator=self.simulator, models=SimpleNamespace(policy=chat, simulator=chat),
            start=SimpleNamespace(log_probs=None, cross_fitted_log_probs=None),
            cluster=SimpleNamespace(
                learner=learner, policy=None, simulator=SimpleNamespace(version=3), collector=None
            ),
        )  # fmt: skip
        self.calibration = SimulatorCalibration(self.run, self)  # type: ignore[arg-type]

    def log(self, values: dict[str, float]) -> None:
        self.metrics |= values

    def due_before(self, updates: int) -> list[int]:
        """The updates, counted from 0, before which an alignment is due."""
        found = []
        for self.updates in range(updates):
            if self.calibration.due():
                found.append(self.updates)
        return found


def shift_record(update: int, low: float, high: float, band: tuple[float, float] | None) -> dict[str, Any]:
    return {"update": update, "simulator_estimated": {"low": low, "high": high}, "null_band": band, "human_turns": 7}


def test_without_a_trigger_the_clock_alone_decides() -> None:
    arm = Arm(CalibrationConfig(every=4))
    assert arm.due_before(10) == [4, 8]
    assert arm.metrics == {"aligned_by_every": 1.0} and arm.calibration.human_turns == 0
    assert Arm(CalibrationConfig(every=0)).due_before(10) == []


def test_a_share_that_falls_below_the_limit_aligns_once_and_is_logged() -> None:
    """0.8 before training, half of which is 0.4; then 0.39 at the alignment, half of which is 0.195. For two updates
    after an alignment nothing is measured."""
    trigger = TriggerConfig(effective_share=0.5, at_least=2)
    arm = Arm(CalibrationConfig(every=0, trigger=trigger), shares=[0.8, 0.6, 0.39, 0.3, 0.19])
    assert arm.due_before(7) == [3, 6]
    assert [alignment.reason for alignment in arm.calibration.schedule.state.alignments] == [Reason.EFFECTIVE_SHARE] * 2
    assert arm.metrics == {"effective_share": 0.19, "aligned_by_effective_share": 1.0}


def test_a_shift_above_its_null_band_aligns_and_its_human_turns_count() -> None:
    records = [
        shift_record(0, 0.0, 0.1, (-0.1, 0.2)),
        shift_record(4, 0.25, 0.4, None),
        shift_record(8, 0.1, 0.3, None),
    ]
    trigger = TriggerConfig(shift="null_band", at_least=2)
    arm = Arm(CalibrationConfig(every=0, trigger=trigger), records=records[:1])
    arm.updates = 3
    assert not arm.calibration.due() and arm.calibration.human_turns == 7
    arm.shift = SimpleNamespace(records=lambda: records[:2])
    arm.updates = 4
    assert arm.calibration.due() and arm.metrics == {"aligned_by_shift": 1.0}
    (alignment,) = arm.calibration.schedule.state.alignments
    assert (alignment.value, alignment.limit, alignment.measured) == (0.25, 0.2, 4)
    assert arm.calibration.human_turns == 14
    arm.shift = SimpleNamespace(records=lambda: records)
    arm.updates = 8
    assert not arm.calibration.due() and arm.calibration.human_turns == 21


def dialogue(turns: list[int]) -> Any:
    """What a user said: a token of each turn in ``turns``."""
    count = len(turns)
    tokens = TokenSequence.unsampled(np.arange(count, dtype=np.int32))
    view = TokenSequence(
        ids=tokens.ids, mask=tokens.mask, logprobs=tokens.logprobs, versions=tokens.versions,
        turns=np.array(turns, np.int32),
    )  # fmt: skip
    return SimpleNamespace(user_tokens=view)


def test_an_ensembles_disagreement_is_taken_from_returns_every_second_update() -> None:
    """Member 1 speaks. Dialogue 1, one turn of two tokens: log 0.4 of the speaker and log 0.1 of the other, so that it
    is log(0.4 / 0.25). Dialogue 2, two turns: log(0.5 / 0.3) and 0, in the mean half of the first."""
    arm = Arm(CalibrationConfig(), members=[A, B])
    arm.log_probs = {
        A: [np.log([0.5, 0.2]), np.log([0.1, 0.7])],
        B: [np.log([0.8, 0.5]), np.log([0.5, 0.7])],
    }
    groups: Any = [[dialogue([1, 1])], [dialogue([1, 3])]]
    arm.updates = 1
    assert arm.calibration.penalties(groups) is None and arm.metrics == {} and arm.loaded == []
    arm.updates = 2
    penalties = arm.calibration.penalties(groups)
    expected = [math.log(0.4 / 0.25), math.log(0.5 / 0.3) / 2]
    assert penalties is not None
    assert [value for group in penalties for value in group] == pytest.approx([0.5 * value for value in expected])
    assert arm.metrics == {"simulator_disagreement": pytest.approx(np.mean(expected))}
    assert arm.loaded == [A, B], "in the end the learner has the member that is served"


def test_without_a_penalty_disagreement_is_a_metric_alone_and_a_single_simulator_has_none() -> None:
    arm = Arm(CalibrationConfig(), members=[A, B])
    arm.log_probs = {A: [np.log([0.5])], B: [np.log([0.5])]}
    arm.run.inputs.calibration.disagreement_penalty = 0.0
    assert arm.calibration.penalties([[dialogue([1])]]) is None
    assert arm.metrics == {"simulator_disagreement": pytest.approx(0.0)}
    assert Arm(CalibrationConfig()).calibration.penalties([[dialogue([1])]]) is None
