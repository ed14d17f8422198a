"""When a simulator is aligned again: the state machine by hand, its promises for any measurements, what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.calibration.trigger import Alignment, AlignmentSchedule, Reason, ScheduleState, TriggerConfig
from calibrated_rl.config.load import load_config
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.errors import UserError
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.sections import alignments
from tests.support.paths import ROOT

DEV = ROOT / "configs" / "dev.yaml"


def schedule(every: int = 0, **trigger: object) -> AlignmentSchedule:
    return AlignmentSchedule(every, TriggerConfig(**trigger))  # type: ignore[arg-type]


def due_before(machine: AlignmentSchedule, updates: range) -> list[int]:
    return [update for update in updates if machine.due(update)]


def test_by_the_clock_alone() -> None:
    machine = schedule(every=4)
    assert due_before(machine, range(13)) == [4, 8, 12]
    assert [machine.next_change(update, 5) for update in (0, 3, 4)] == [4, 4, 8]
    assert {alignment.reason for alignment in machine.state.alignments} == {Reason.EVERY}
    assert due_before(schedule(), range(20)) == [] and schedule().next_change(3, 5) is None


def test_shift_that_leaves_its_null_band_aligns_before_the_next_update() -> None:
    machine = schedule(shift="null_band", at_least=2)
    machine.saw_shift(0, low=0.05, high=0.2, null_high=0.1)  # reaches into the band
    assert machine.due(1) is None and machine.next_change(1, 5) == 6
    machine.saw_shift(5, low=0.11, high=0.3, null_high=None)
    assert machine.due(6) == Alignment(update=6, reason=Reason.SHIFT, value=0.11, limit=0.1, measured=5)
    machine.saw_shift(5, low=0.9, high=1.0, null_high=None)  # told before
    assert due_before(machine, range(7, 10)) == []
    assert "after update 5" in str(machine.state.alignments[0])


def test_what_was_measured_before_an_alignment_is_of_another_simulator() -> None:
    machine = schedule(every=6, shift="null_band", at_least=1)
    machine.saw_shift(0, 0.0, 0.1, null_high=0.1)
    assert machine.due(6) is not None
    machine.saw_shift(5, 0.5, 0.6, None)
    assert due_before(machine, range(7, 12)) == []
    machine.saw_shift(10, 0.5, 0.6, None)
    assert due_before(machine, range(11, 14)) == [11, 12]


def test_without_a_band_or_a_measurement_shift_is_no_cause() -> None:
    machine = schedule(shift="null_band", at_least=1)
    machine.saw_shift(0, 0.5, 0.6, null_high=None)
    machine.saw_shift(2, None, None, null_high=0.1)
    assert due_before(machine, range(1, 6)) == []


def test_a_cause_waits_for_the_cool_down_unless_it_is_taken_back() -> None:
    waits, taken_back = (schedule(shift="null_band", at_least=8) for _ in range(2))
    for machine in (waits, taken_back):
        machine.saw_shift(0, 0.0, 0.1, null_high=0.1)
        machine.saw_shift(3, 0.2, 0.3, None)
        assert due_before(machine, range(4, 6)) == [] and machine.next_change(5, 3) == 8
    taken_back.saw_shift(6, 0.0, 0.1, None)
    assert due_before(waits, range(6, 20)) == [8] and due_before(taken_back, range(6, 20)) == []


def test_risen_compares_with_what_the_last_alignment_reached() -> None:
    """A simulator that stays above the null band is not aligned again at every measurement."""
    band, risen = schedule(shift="null_band", at_least=1), schedule(shift="risen", at_least=1)
    for update, low, high in ((0, 0.2, 0.3), (2, 0.25, 0.35), (4, 0.31, 0.4), (6, 0.33, 0.5), (8, 0.51, 0.6)):
        for machine in (band, risen):
            machine.saw_shift(update, low, high, 0.1 if update == 0 else None)
            machine.due(update + 1)
    assert [alignment.update for alignment in band.state.alignments] == [1, 3, 5, 7, 9]
    assert [(alignment.update, alignment.limit) for alignment in risen.state.alignments] == [(5, 0.3), (9, 0.5)]


def test_the_effective_share_is_compared_with_that_of_the_last_alignment() -> None:
    machine = schedule(effective_share=0.5, at_least=2)
    shares = {0: 0.9, 2: 0.46, 3: 0.44, 5: 0.4, 6: 0.23, 7: 0.2}
    for update in range(8):
        assert machine.wants_share(update) == (update in shares)
        machine.due(update, shares.get(update))
    assert [(a.update, a.value, a.limit) for a in machine.state.alignments] == [(3, 0.44, 0.45), (7, 0.2, 0.22)]
    assert machine.next_change(7, 0) == 9


def test_a_share_that_an_alignment_by_the_clock_has_seen_is_the_next_reference() -> None:
    machine = schedule(every=4, effective_share=0.5, at_least=6)
    assert machine.due(0, 1.0) is None and not machine.wants_share(3) and machine.wants_share(4)
    assert machine.due(4, 0.6) is not None and machine.state.share == 0.6


def test_at_most_so_many_by_the_trigger() -> None:
    machine = schedule(every=7, effective_share=0.9, at_least=1, at_most=2)
    for update in range(16):
        machine.due(update, 0.5**update if machine.wants_share(update) else None)
    reasons = {alignment.update: str(alignment.reason) for alignment in machine.state.alignments}
    assert reasons == {1: "effective_share", 2: "effective_share", 7: "every", 14: "every"}


limits = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)
machines = st.builds(
    schedule, every=st.integers(0, 6), shift=st.sampled_from(["never", "null_band", "risen"]),
    effective_share=st.sampled_from([0.0, 0.6]), at_least=st.integers(1, 5), at_most=st.integers(0, 3),
)  # fmt: skip


@settings(max_examples=40)
@given(machines, st.integers(1, 5), st.lists(st.tuples(limits, st.floats(0.01, 1)), min_size=24, max_size=24))
def test_any_run_keeps_its_promises_and_resumes_to_the_same(
    machine: AlignmentSchedule, measured_every: int, seen: list[tuple[list[float], float]]
) -> None:
    """No alignment comes before ``next_change`` said, nor sooner than ``at_least`` by the trigger; the state goes
    through a checkpoint before every update."""
    twin = AlignmentSchedule(machine.every, machine.trigger)
    earliest = 1
    for update, ((low, high), share) in enumerate(seen):
        twin.state = ScheduleState.from_plain(json.loads(json.dumps(dataclasses.asdict(twin.state))))
        assert twin.state == machine.state
        before, measured = machine.last, update - 1
        for each in (machine, twin):
            if measured >= 0 and measured % measured_every == 0:
                each.saw_shift(measured, low, high, 0.2 if measured == 0 else None)
            alignment = each.due(update, share if each.wants_share(update) else None)
        if alignment is not None:
            assert update >= earliest
            assert alignment.reason is Reason.EVERY or update - before >= machine.trigger.at_least
        change = machine.next_change(update, measured_every)
        assert change is None or change > update
        earliest = len(seen) if change is None else change
    by_trigger = [a for a in machine.state.alignments if a.reason is not Reason.EVERY]
    assert len(by_trigger) <= (machine.trigger.at_most or len(seen))


SHIFT = "calibration.trigger.shift=null_band"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([SHIFT, "shift.every=0"], "calibration.trigger.shift is null_band, and shift.every is 0"),
        ([SHIFT, "shift.null_halvings=0"], "shift.null_halvings is 0: there is no null band"),
        ([SHIFT, "shift.every=40", "training.updates=40"], "shift.every is 40, of training.updates, 40: nothing"),
        ([SHIFT, "shift.dialogues=11"], "shift.dialogues is 11: the null band .* at least 12"),
        ([SHIFT, "calibration.trigger.at_least=40", "training.updates=40"], "at_least is 40, of .* 40: .* never align"),
        (["calibration.trigger.effective_share=0.5", "calibration.method=calibrated_rl.calibration.plain:PlainSFT"],
         "effective_share is 0.5, and calibrated_rl.calibration.plain:PlainSFT gives every log the same weight"),
        (["calibration.trigger.effective_share=0.5", "calibration.every=0", "policy.warm_start.epochs=0"],
         "policy.warm_start.epochs is 0"),
        (["calibration.trigger.shift=often"], "choose never, null_band or risen"),
        (["calibration.trigger.effective_share=1"], "at least 0 and below 1"),
    ],
)  # fmt: skip
def test_triggers_that_cannot_work_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(DEV, changes)


def test_on_logs_alone_shift_is_no_trigger_and_the_share_is() -> None:
    casino = ROOT / "configs" / "casino.yaml"
    with pytest.raises(UserError, match=r"`human` is empty: .*\.effective_share needs no human"):
        load_config(casino, [SHIFT, "calibration.trigger.at_least=1"])
    assert load_config(casino, ["calibration.trigger={effective_share: 0.5, at_least: 1}"]).calibration.trigger.on


def test_triggers_without_effect_are_told() -> None:
    lines = settings_without_effect(load_config(DEV, [SHIFT, "arms=[interactive]"]))
    assert any("no arm aligns its simulator again" in line for line in lines)
    lines = settings_without_effect(load_config(DEV, ["calibration.source=pretraining", "calibration.asked=a.jsonl"]))
    assert any("calibration.asked has no effect" in line for line in lines)
    lines = settings_without_effect(load_config(DEV, ["arms=[interactive]", "calibration.asked=a.jsonl"]))
    assert any("calibration.asked has no effect: no arm aligns" in line for line in lines)
    lines = settings_without_effect(load_config(DEV, ["calibration.trigger.at_most=3"]))
    assert any("trigger.at_most has no effect" in line for line in lines)


def test_the_report_says_when_and_why(tmp_path: Path) -> None:
    done = [
        {"seed": 1, "update": 4, "reason": "shift", "value": 0.21, "limit": 0.1},
        {"seed": 0, "update": 9, "reason": "every", "value": None, "limit": None},
    ]
    arms = {"calibrated": {"alignments": done}, "interactive": {"alignments": []}, "static": {}}
    run = RunFiles(name="r", summary={"arms": arms}, metrics={}, samples=[], config={})
    view = alignments.view(run)
    assert view is not None
    cells = [(row.seed, row.update, row.why, row.value, row.limit) for row in view.rows]
    assert cells[0] == (1, 5, "the simulator's shift left its null band", "0.210", "0.100")
    assert cells[1] == (0, 10, "calibration.every", "–", "–")
    assert alignments.view(dataclasses.replace(run, summary={"arms": {"static": {}}})) is None
