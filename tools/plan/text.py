"""A plan as tables for readers and as numbers for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tools.plan.check import Checked
from tools.plan.measured import Measured
from tools.plan.model import HALF_BATCH_WITHIN, Parts
from tools.plan.search import Plan, Planner

ASSUMED = (
    "every replica and rank has a device of its own, as fast as the one that was measured",
    "dialogues are as long as in the measured updates",
    "nothing is lost: no machine is taken away, none is waited for",
)


def measured_table(measured: Measured) -> str:
    """The measurements: seconds by part, and turns in flight by side."""
    seconds = measured.seconds_an_update()
    total = sum(seconds.values())
    rows = [(name, f"{value:.3f}", f"{value / total:.0%}") for name, value in seconds.items()]
    head = (
        f"measured: {len(measured.updates)} updates of {measured.arm} in {measured.source} "
        f"({measured.config.training.tokens_per_update} tokens an update)"
    )
    updates = measured.updates
    sides = sorted(set().union(*(update.in_flight for update in updates)))
    means = {side: sum(update.in_flight.get(side, 0.0) for update in updates) / len(updates) for side in sides}
    flights = ", ".join(f"{mean:.1f} {side}" for side, mean in means.items())
    in_flight_lines = [f"turns in flight during rollouts, on average: {flights}"] if flights else []
    return "\n".join([head, grid([("part", "s an update", "share"), *rows]), *in_flight_lines])


def prediction_table(planner: Planner, counts: Mapping[str, int]) -> str:
    """An update with the config's own numbers."""
    prediction = planner.predict(counts)
    setting = planner.setting(counts)
    numbers = ", ".join(f"{count} {role}" for role, count in counts.items())
    return "\n".join(
        [
            f"predicted for {numbers}, {setting.tokens} tokens an update:",
            f"  {_parts(prediction.parts)}",
            f"  update {prediction.parts.step:.2f} s [{prediction.low:.2f}, {prediction.high:.2f}], "
            f"{planner.config.training.updates} updates "
            f"{planner.run_seconds(prediction.parts.step, setting) / 60:.1f} min",
        ]
    )


def plans_table(planner: Planner, plans: Mapping[str, Plan]) -> str:
    """The chosen plans, one a row."""
    head = ("plan", "policy", "simulator", "learner", "machines", "update, s", "run, h", "$ a run", "$ on demand")
    rows = []
    for name, plan in plans.items():
        prediction = planner.predict(plan.counts)
        machines = " + ".join(
            f"{count} {machine_name}" for machine_name, count in plan.placement.machines.items() if count
        )
        rows.append(
            (
                name, *(str(plan.counts[role]) for role in ("policy", "simulator", "learner")), machines,
                f"{plan.parts.step:.2f} [{prediction.low:.2f}, {prediction.high:.2f}]", f"{plan.seconds / 3600:.3f}",
                f"{plan.dollars:.4g}", f"{plan.on_demand_dollars:.4g}",
            )
        )  # fmt: skip
    return grid([head, *rows])


def check_table(checked: Checked) -> str:
    """Predicted and measured times."""
    rows = [
        (name, f"{getattr(checked.predicted, name):.3f}", f"{getattr(checked.happened, name):.3f}",
         f"{getattr(checked.happened, name) / getattr(checked.predicted, name):.2f}")
        for name in ("rollout", "learning", "sync") if getattr(checked.predicted, name) > 0
    ]  # fmt: skip
    ratio, step = checked.ratio, checked.happened.step
    inside = "inside" if checked.low <= step <= checked.high else "outside"
    return "\n".join(
        [
            f"predicted for {checked.source} and what happened there ({checked.updates} updates):",
            grid([("part", "predicted, s", "happened, s", "ratio"), *rows]),
            f"update {checked.predicted.step:.2f} s [{checked.low:.2f}, {checked.high:.2f}] predicted, {step:.2f} s "
            f"happened ({inside}); ratio {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
            *(
                [
                    f"over the {checked.common} updates that both runs have, by number: ratio {paired.value:.2f} "
                    f"[{paired.low:.2f}, {paired.high:.2f}]"
                ]
                if (paired := checked.paired)
                else []
            ),
            *([f"other settings differ, too: {', '.join(checked.beside)}"] if checked.beside else []),
        ]
    )


def notes(planner: Planner) -> str:
    """The assumptions and omissions of the prediction."""
    lines = [f"assumed: {'; '.join(ASSUMED)}"]
    lines.append(
        "brackets: 95 % over the measured updates, and half_batch wrong by a factor of "
        f"{HALF_BATCH_WITHIN:g}; not in the run: starting, warm start, evaluation"
    )
    if planner.beside:
        lines.append(f"not taken into account, though they differ from the measured run: {', '.join(planner.beside)}")
    if planner.unmeasured:
        lines.append(f"not counted, since the measured updates had none of it: {', '.join(planner.unmeasured)}")
    return "\n".join(lines)


def prediction_values(planner: Planner, measured: Measured, counts: Mapping[str, int]) -> dict[str, Any]:
    """The first two tables, for programs."""
    prediction = planner.predict(counts)
    return {
        "measured": {
            "run": measured.source, "arm": measured.arm, "updates": len(measured.updates),
            "tokens_per_update": measured.config.training.tokens_per_update, "seconds": measured.seconds_an_update(),
            "weight_bytes": measured.weight_bytes,
        },
        "predicted": {
            "counts": dict(counts), "tokens_per_update": planner.config.training.tokens_per_update,
            "seconds": asdict(prediction.parts), "step": prediction.parts.step,
            "low": prediction.low, "high": prediction.high,
            "run_seconds": planner.run_seconds(prediction.parts.step, planner.setting(counts)),
        },
        "assumed": list(ASSUMED), "not_counted": planner.unmeasured,
    }  # fmt: skip


def plan_values(planner: Planner, plans: Mapping[str, Plan]) -> dict[str, Any]:
    """The chosen plans, for programs."""
    values_by_plan = {}
    for name, plan in plans.items():
        prediction = planner.predict(plan.counts)
        values_by_plan[name] = {
            "counts": dict(plan.counts), "machines": dict(plan.placement.machines), "seconds": asdict(plan.parts),
            "step": plan.parts.step, "low": prediction.low, "high": prediction.high, "run_seconds": plan.seconds,
            "dollars_per_hour": plan.placement.dollars_per_hour, "dollars": plan.dollars,
            "on_demand_dollars": plan.on_demand_dollars,
        }  # fmt: skip
    return values_by_plan


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows with their columns below each other; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )  # fmt: skip


def _parts(parts: Parts) -> str:
    overlap_note = f", of which {parts.hidden:.3f} s overlapping" if parts.hidden else ""
    return f"rollout {parts.rollout:.3f} s, learning {parts.learning:.3f} s, sync {parts.sync:.3f} s{overlap_note}"
