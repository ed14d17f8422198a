"""Counting the health of simulators: rates by hand, settings, a detector from outside, the summary and the report."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.data.dialogue import Dialogue, Side, Source, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.health_summary import health_of
from calibrated_rl.health.config import BUILTIN, HealthConfig
from calibrated_rl.health.counting import LOGGED, Rate, SimulatorHealth, Spoken, of_dialogues, of_groups, rates_as_plain
from calibrated_rl.health.limits import excesses, metrics_of, paused
from calibrated_rl.report.rendering import render
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.sections import health as section
from calibrated_rl.rollout.statistics import BrokenTry, RolloutStatistics
from calibrated_rl.run.saved_run import refuse_other_settings
from calibrated_rl.statistics.intervals import share_interval
from calibrated_rl.training.health_watch import of_tries
from tests.support.made_up_rollouts import SCENARIO, rollout
from tests.support.paths import MICRO


def turns_of(*texts: str, source: Source = Source.SIMULATOR) -> tuple[Turn, ...]:
    """The greeting, then user and policy in turn."""
    sides = {0: (Side.POLICY, Source.GREETING), 1: (Side.USER, source)}
    policy = (Side.POLICY, Source.POLICY)
    turns = []
    for number, text in enumerate(("hello", *texts)):
        side, where = sides[number] if number < 2 else (Side.USER, source) if number % 2 else policy
        turns.append(Turn(side=side, text=text, source=where))
    return tuple(turns)


def dialogue(name: str, *texts: str, source: Source = Source.SIMULATOR) -> Dialogue:
    return rollout("g", 0, id=name, turns=turns_of(*texts, source=source))


def health(*names: str, monitor: Sequence[Dialogue] = ()) -> SimulatorHealth:
    return SimulatorHealth(None, names, (), monitor)


def test_rates_are_over_the_turns_of_users_with_dialogues_as_units() -> None:
    first, second = ("...", "yes?", "table", "yes?", "..."), ("hi", "yes?", "bye")
    spoken = of_dialogues([dialogue("a", *first), dialogue("b", *second)])
    rate = health("empty_turn").rates(spoken)["empty_turn"]
    assert (rate.found, rate.ordinals) == ([True, False, True, False, False], [1, 2, 3, 1, 2])
    assert rate.interval == share_interval([1, 0, 1, 0, 0], ["a", "a", "a", "b", "b"]) and rate.example == "..."
    plain = rate.as_dict()
    assert plain["mean"] == 0.4 and plain["turns"] == 5 and plain["low"] < 0.4 < plain["high"]
    assert plain["by_turn"] == [
        {"turn": 1, "mean": 0.5, "turns": 2},
        {"turn": 2, "mean": 0.0, "turns": 2},
        {"turn": 3, "mean": 1.0, "turns": 1},
    ]


def test_turns_that_cannot_be_judged_are_not_counted() -> None:
    rates = health("language_change", "empty_turn").rates(of_dialogues([dialogue("a", "hm")]))
    assert rates["language_change"].turns == 0 and rates["language_change"].interval is None
    assert rates["language_change"].as_dict() == {"mean": None, "low": None, "high": None, "turns": 0, "by_turn": []}
    assert set(metrics_of(rates, {})) == {"health_empty_turn", "health_empty_turn_turns"}


def test_an_opening_that_a_group_shares_counts_once() -> None:
    group = [dialogue("a", "...", "yes?", "hi"), dialogue("b", "...", "yes?", "...")]
    rate = health("empty_turn").rates(of_groups([group]))["empty_turn"]
    assert (rate.found, rate.names) == ([True, False, True], ["a", "a", "b"])


def test_logged_histories_are_nobody_s_rollout_and_the_reverse() -> None:
    logged = of_dialogues([dialogue("a", "...", source=Source.LOG)])
    own = health("empty_turn", monitor=[dialogue("m", "...", "?", "hi", source=Source.LOG)])
    assert own.rates(logged)["empty_turn"].turns == 0 and own.rates(logged, LOGGED)["empty_turn"].turns == 1
    assert own.reference["empty_turn"].found == [True, False]


def test_what_broke_a_dialogue_is_counted_from_its_own_turns_on() -> None:
    statistics = RolloutStatistics()
    turns = turns_of("table", "which day?", "")
    statistics.remember_broken("rollout", BrokenTry("g", SCENARIO, turns, 2))
    statistics.remember_broken("evaluation", BrokenTry("h", SCENARIO, turns[:2], 1))
    broken = statistics.take_broken("rollout")
    assert not statistics.take_broken("rollout") and len(statistics.take_broken("evaluation")) == 1
    rate = health("empty_turn").rates(of_tries(broken))["empty_turn"]
    assert (rate.found, rate.ordinals) == ([True], [2])


def rate_of(found: int, turns: int) -> Rate:
    marks = [number < found for number in range(turns)]
    return Rate(found=marks, names=[str(n) for n in range(turns)], ordinals=[1] * turns, example="How can I help you?")


def test_a_rate_pauses_with_its_whole_interval_and_enough_turns() -> None:
    config = HealthConfig(thresholds={"role_inversion": 0.2, "copying": 0.0}, least_turns=30)
    for found, turns, pauses in ((20, 50, True), (12, 50, False), (20, 29, False), (5, 50, False)):
        metrics = metrics_of({"role_inversion": rate_of(found, turns)}, config.thresholds)
        interval = share_interval([n < found for n in range(turns)], range(turns))
        assert metrics["health_role_inversion_low"] == pytest.approx(interval.low)
        assert bool(excesses(metrics, config)) is pauses, (found, turns)
    clustered = Rate(found=[True] * 40, names=["one"] * 40, ordinals=[1] * 40)
    metrics = metrics_of({"role_inversion": clustered}, config.thresholds)
    assert "health_role_inversion_low" not in metrics and not excesses(metrics, config), "one dialogue says nothing"
    assert not excesses(metrics_of({"copying": rate_of(0, 50)}, config.thresholds), config)
    assert "health_copying_low" not in metrics_of({"copying": rate_of(9, 50)}, {}), "limits of thresholds alone"


def test_the_message_says_what_how_often_beside_whom_and_what_to_do() -> None:
    config = HealthConfig(thresholds={"role_inversion": 0.2})
    found = excesses(metrics_of({"role_inversion": rate_of(20, 50)}, config.thresholds), config)
    reference = {"role_inversion": rate_of(1, 200)}
    text = str(
        paused("calibrated (seed 0)", 7, found, reference, {"role_inversion": "How\ncan I?"}, "runs/x/checkpoints")
    )
    for part in (
        "calibrated (seed 0) is paused after update 7", "role_inversion in 0.400 of the simulator's 50 turns",
        'such as "How\\ncan I?"', "above health.thresholds.role_inversion, 0.2", "in human logs 0.005 of 200",
        "health.thresholds.role_inversion=...", "resumes from runs/x/checkpoints",
    ):  # fmt: skip
        assert part in text, part
    assert "\n" not in text
    assert "no turn of the human logs could be judged" in str(paused("a", 1, found, {}, {}, "x"))


WRONG = {
    "health.detectors=[role_inverson]": "health.detectors[0] is 'role_inverson': choose after_end, copying, "
    "early_stop, empty_turn, goal_drift, language_change, leaked_reasoning or role_inversion; did you mean "
    "'role_inversion'?",
    "health.thresholds={role_inverson: 0.2}": "health.thresholds.role_inverson is for no detector: choose after_end, "
    "copying, early_stop, empty_turn, goal_drift, language_change, leaked_reasoning or role_inversion; did you mean "
    "'role_inversion'?",
    "health={detectors: [copying], thresholds: {empty_turn: 0.1}}": "health.thresholds.empty_turn is for a detector "
    "that is off: add empty_turn to health.detectors",
    "health={detectors: [], thresholds: {mine: 0.1}}": "is for no detector: health.detectors is empty",
    "health.thresholds={copying: 1}": "health.thresholds.copying is 1: it must be at least 0 and below 1",
    "health.detectors=[copying, copying]": "health.detectors[1] is copying, and another detector is called copying",
}


@pytest.mark.parametrize("change", WRONG)
def test_mistakes_are_named_with_the_nearest(change: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(MICRO, [change])
    assert WRONG[change] in str(refused.value)


def test_a_mistake_ends_a_job_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from calibrated_rl.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["compare", str(MICRO), "health.thresholds={copyin: 0.2}"])
    assert ended.value.code == 2 and "did you mean 'copying'?" in capsys.readouterr().err


def test_thresholds_may_change_when_a_run_resumes(tmp_path: Path) -> None:
    begun = load_config(MICRO, ["date=2026-01-02", "health.thresholds={copying: 0.1}"])
    (tmp_path / "config.yaml").write_text(to_yaml(begun))
    refuse_other_settings(tmp_path, load_config(MICRO, ["date=2026-01-02", "health.thresholds={copying: 0.5}"]))
    with pytest.raises(UserError, match=r"calibration\.every"):
        refuse_other_settings(tmp_path, load_config(MICRO, ["date=2026-01-02", "calibration.every=2"]))


def test_thresholds_without_a_simulator_have_no_effect() -> None:
    changes = ["arms=[oracle]", "health.thresholds={copying: 0.1}"]
    assert "health.thresholds has no effect: no arm meets a simulator" in settings_without_effect(
        load_config(MICRO, changes)
    )


OUTSIDE = '''
from dataclasses import dataclass

class Shouting:
    """The user shouts."""
    name = "shouting"

    @dataclass(frozen=True)
    class Config:
        least: int = 3

    def __init__(self, config):
        self.config = config

    def learn(self, logs):
        self.seen = len(logs)

    def detect(self, turn):
        return {returned}

class Nameless(Shouting):
    name = "not a name"
'''


def test_a_detector_from_outside_is_one_file_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        OUTSIDE.replace("{returned}", "turn.text.isupper() if len(turn.text) >= self.config.least else None")
    )
    path = f"{file}:Shouting"
    config = load_config(MICRO, [f"health.detectors=[copying,{path}]", "health.thresholds={shouting: 0.3}"])
    own = SimulatorHealth(None, config.health.detectors, [dialogue("l", "hi")], ())
    rates = own.rates(of_dialogues([dialogue("a", "HELP", "what?", "no", "ok", "fine")]))
    assert list(rates) == ["copying", "shouting"] and rates["shouting"].found == [True, False]
    with pytest.raises(UserError, match=r"thresholds\.shoutin is for no detector.*did you mean 'shouting'"):
        load_config(MICRO, [f"health.detectors=[{path}]", "health.thresholds={shoutin: 0.3}"])
    with pytest.raises(UserError, match="'not a name': it must be made of letters"):
        load_config(MICRO, [f"health.detectors=[{file}:Nameless]"])
    with pytest.raises(UserError, match="has no 'Missing'"):
        load_config(MICRO, [f"health.detectors=[{file}:Missing]"])


@pytest.mark.parametrize(
    ("returned", "complaint"), [("'yes'", "must be True or False"), ("1 / 0", "ZeroDivisionError")]
)
def test_what_a_detector_returns_is_used_or_refused(tmp_path: Path, returned: str, complaint: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OUTSIDE.replace("{returned}", returned))
    with pytest.raises(UserCodeError, match=complaint):
        health(f"{file}:Shouting").rates(of_dialogues([dialogue("a", "hi")]))


def rows(seed: int, values: dict[int, tuple[float, float]]) -> dict[str, Any]:
    metrics = []
    for update, (rate, turns) in values.items():
        for name, value in (("health_copying", rate), ("health_copying_turns", turns), ("health_copying_low", 0.0)):
            metrics.append({"arm": "a", "seed": seed, "update": update, "name": name, "value": value})
    return {"seed": seed, "metrics": metrics}


def test_the_summary_pools_turns_over_updates_and_seeds() -> None:
    values = {update: (0.0 if update < 6 else 0.5, 10.0) for update in range(12)}
    found = health_of([rows(0, values), rows(1, {0: (1.0, 20.0)})])
    assert set(found) == {"copying"} and found["copying"]["turns"] == 140
    assert found["copying"]["mean"] == pytest.approx((30 + 20) / 140)
    assert found["copying"]["first"] == pytest.approx(20 / 70) and found["copying"]["last"] == pytest.approx(45 / 70)
    assert health_of([{"seed": 0, "metrics": []}]) == {}


def run_files(**summary: Any) -> RunFiles:
    config = {"health": {"thresholds": {"copying": 0.1}}}
    return RunFiles(name="r", summary=summary, metrics={}, samples=[], config=config)


def test_the_report_sets_simulators_beside_people() -> None:
    people, simulator = ({"copying": rate_of(found, 100)} for found in (1, 30))
    empty = {"goal_drift": Rate()}
    after = {"mean": 0.2, "turns": 500.0, "first": 0.3, "last": 0.05}
    view = section.view(
        run_files(
            simulator={
                "human": {"health": rates_as_plain(people | empty)},
                "before": {"health": rates_as_plain(simulator | empty)}, "after": {},
            },
            arms={"calibrated": {"health": {"copying": after}}, "oracle": {"health": {"copying": after}}},
        )
    )  # fmt: skip
    assert view is not None and view.columns == [
        "human logs",
        "simulator before calibration",
        "in training: calibrated",
    ]
    drift, copying = view.rows
    assert drift.detector == "goal drift" and [count.value for count in drift.counts] == [None, None, None]
    assert [count.is_above for count in copying.counts] == [False, True, False], "the last updates count"
    page = render(view.template, view=view)
    assert "copies the policy" in page and "of 100" in page and "0.300 → 0.050" in page and "<b>" in page
    assert section.view(run_files()) is None, "runs of earlier versions have no such section"


def test_all_detectors_judge_the_same_turn_alike_again() -> None:
    spoken = [
        Spoken(name="a", scenario=SCENARIO, turns=turns_of("table", "which day?", "friday", "ok", "How can I help?"))
    ]
    first, second = (SimulatorHealth(None, BUILTIN, (), ()).rates(spoken) for _ in range(2))
    assert {n: dataclasses.asdict(r) for n, r in first.items()} == {n: dataclasses.asdict(r) for n, r in second.items()}
    assert not math.isnan(first["role_inversion"].interval.mean)  # type: ignore[union-attr]
