"""When the simulator was aligned again while an arm trained, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite, number


@dataclass(frozen=True, slots=True)
class Aligned:
    """One alignment of one arm with one seed."""

    arm: str
    seed: int
    update: int
    """The update before which it took place, counted from 1."""
    why: str
    value: str
    limit: str


@dataclass(frozen=True, slots=True)
class Alignments:
    template: ClassVar[str] = "alignments.jinja"
    rows: list[Aligned]


REASONS = {
    "every": "calibration.every",
    "shift": "the simulator's shift left its null band",
    "effective_share": "the effective share of the logs fell",
}
"""As ``calibration/trigger.py`` calls them."""


def view(run: RunFiles) -> Alignments | None:
    """Nothing where no arm aligned its simulator again."""
    rows = [_row(arm, alignment) for arm in run.arms() for alignment in alignments_of(run, arm)]
    return Alignments(rows) if rows else None


def alignments_of(run: RunFiles, arm: str) -> list[Mapping[str, Any]]:
    """Those of all seeds of ``arm``; empty for runs of versions that did not record them."""
    raw = run.arms()[arm].get("alignments")
    return [each for each in raw if isinstance(each, dict) and finite(each.get("update")) is not None] if raw else []


def _row(arm: str, alignment: Mapping[str, Any]) -> Aligned:
    reason = str(alignment.get("reason"))
    value, limit = (
        "–" if (finite_value := finite(alignment.get(key))) is None else number(finite_value, 3)
        for key in ("value", "limit")
    )
    return Aligned(
        arm=style(arm).label, seed=int(finite(alignment.get("seed")) or 0), update=int(alignment["update"]) + 1,
        why=REASONS.get(reason, reason), value=value, limit=limit,
    )  # fmt: skip
