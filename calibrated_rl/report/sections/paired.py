"""Differences between arms over the same scenarios and users."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.arms import pair_label
from calibrated_rl.report.deployed import decodings
from calibrated_rl.report.plots import results
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import Interval, interval, mapping, over_what
from calibrated_rl.report.views import Plot


@dataclass(frozen=True, slots=True)
class Paired:
    template: ClassVar[str] = "paired.jinja"
    over: str
    """What the intervals are over; empty where that is not known."""
    not_measured: list[str]
    """Differences that could not be taken."""
    plot: Plot | None


def view(run: RunFiles) -> Paired:
    panels: dict[str, dict[str, Interval]] = {}
    not_measured: dict[str, None] = {}
    for decoding in decodings(run.summary):
        pairs = mapping(run.summary, decoding.paired)
        differences = {pair: value for pair in pairs if (value := interval(pairs[pair])) is not None}
        not_measured |= {pair_label(pair): None for pair in pairs if pair not in differences}
        if differences:
            panels[decoding.name] = differences
    return Paired(
        over=over_what(run.summary),
        not_measured=list(not_measured),
        plot=Plot.of(results.paired(panels), "Paired differences") if panels else None,
    )
