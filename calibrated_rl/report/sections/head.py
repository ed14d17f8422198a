"""Title, warning label, and the findings in words."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.arms import style
from calibrated_rl.report.deployed import deployed
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, interval, look_up, mapping
from calibrated_rl.report.views import CALIBRATION


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference, whose bounds are known."""

    first: str
    second: str
    value: Interval


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """A metric of the simulator before and after calibration."""

    before: Interval
    after: Interval


@dataclass(frozen=True, slots=True)
class Head:
    template: ClassVar[str] = "head.jinja"
    name: str
    task: str
    seeds: list[str]
    label: str
    eval_user: str
    """Who evaluated the policies; a run without a scripted human names its proxy under ``held_out_user``."""
    has_eval_user: bool
    """True also where nothing was trained yet."""
    decoding: str
    """How the policies of the differences spoke."""
    differences: list[Difference]
    classifier_accuracy: BeforeAfter | None
    exact_tv: BeforeAfter | None
    human_turn_nll: BeforeAfter | None


def view(run: RunFiles) -> Head:
    summary = run.summary
    return Head(
        name=run.name,
        task=str(summary.get("task") or ""),
        seeds=[str(seed) for seed in summary.get("seeds") or []],
        label=str(summary.get("label") or ""),
        eval_user=str(summary.get("held_out_user") or "held-out users"),
        has_eval_user=run.has_eval_user() or not run.arms(),
        decoding=deployed(summary).name,
        differences=_differences(run),
        classifier_accuracy=_before_after(run, "classifier_accuracy"),
        exact_tv=_before_after(run, "exact_tv"),
        human_turn_nll=_before_after(run, "human_turn_nll"),
    )


def _differences(run: RunFiles) -> list[Difference]:
    differences = []
    for pair, raw in mapping(run.summary, deployed(run.summary).paired).items():
        value = interval(raw)
        first, separator, second = pair.partition("-")
        with_all = "@" not in pair  # differences with one of several users have their section
        if value is not None and value.bounds is not None and separator and with_all:
            differences.append(Difference(style(first).label, style(second).label, value))
    return differences


def _before_after(run: RunFiles, key: str) -> BeforeAfter | None:
    before, after = (interval(look_up(run.summary, "simulator", phase, key)) for phase in CALIBRATION)
    return None if before is None or after is None else BeforeAfter(before, after)
