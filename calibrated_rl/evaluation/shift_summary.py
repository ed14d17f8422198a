"""What the arms measured of their own distance from real dialogues, put together for ``summary.json``.

Over training seeds means are averaged. The interval of exploitation is that over seeds and scenarios, from what both
users paid (``statistics.mean_over_seeds``). Of the other metrics each seed has left only a mean and its limits, from
which seeds and dialogues cannot be told apart: half the width is there the root of the sum of the squares of a t
interval over the seeds' means and of the seeds' mean half width. Noise counts in both, so that the interval is rather
too wide than too narrow. That of a single seed is its own, and says nothing of other seeds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.config.arms import CALIBRATED
from calibrated_rl.shift.in_run import METRICS
from calibrated_rl.shift.transfer import OutcomeTransfer, PolicyOutcomes
from calibrated_rl.statistics.intervals import mean_over_seeds, t_quantile

TRANSFER = ("success_ece", "rank_spearman", "rank_kendall", "exploitation")
BY_TURN = ("policy", "simulator", "simulator_estimated", "history_shift")


def records_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record an update, from the results of one arm with all its seeds; as ``in_run.shift_record`` gives them."""
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    outcomes: dict[int, dict[int, Mapping[str, Any]]] = {}
    for result in results:
        for record in result.get("shift", ()):
            by_update.setdefault(record["update"], []).append(record)
            if record["exploitation"] is not None and record["outcomes"]:
                outcomes.setdefault(record["update"], {})[result["seed"]] = record["outcomes"]
    merged = []
    for update, records in sorted(by_update.items()):
        metrics = {name: _average([r[name] for r in records if r[name] is not None]) for name in METRICS}
        if len(paid := outcomes.get(update, {})) > 1:
            sides = ({seed: of[f"{side}_reward"] for seed, of in paid.items()} for side in ("simulator", "human"))
            metrics["exploitation"] = mean_over_seeds(*sides).as_dict()
        bands = [r["null_band"] for r in records if r["null_band"] is not None]
        band = [min(low for low, _ in bands), max(high for _, high in bands)] if bands else None
        refused = {name: why for record in records for name, why in record["refused"].items()}
        merged.append({"update": update, "null_band": band, "refused": refused, **metrics})
    return merged


def transfer_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Do the rewards of policies with the simulator they train with predict those with the human? Over the
    checkpoints that were measured while training, of all arms (``all``) and of each: ``OutcomeTransfer``'s metrics."""
    outcomes: dict[str, list[PolicyOutcomes]] = {}
    for result in results:
        for record in result.get("shift", ()):
            if record.get("outcomes"):
                name = f"{result['arm']}-{result['seed']}-{record['update']}"
                policy_outcomes = PolicyOutcomes(policy=name, **record["outcomes"])
                for group in ("all", result["arm"]) if policy_outcomes.common() else ():
                    outcomes.setdefault(group, []).append(policy_outcomes)
    transfer = {}
    for group, policies in outcomes.items():
        estimates = OutcomeTransfer().measure(policies)
        metrics = {name: estimates[name].as_dict() for name in TRANSFER}
        transfer[group] = {"policies": len(policies), **metrics}
    return transfer


def _average(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not records:
        return None
    average = _pooled(records) | {
        key: _mean([each[key] for each in records]) for key in ("early", "late") if key in records[0]
    }
    if "rewards" in records[0]:
        average["rewards"] = records[0]["rewards"]
    if bands := [each["null_band"] for each in records if each.get("null_band")]:
        average["null_band"] = [min(low for low, _ in bands), max(high for _, high in bands)]
    if "by_turn" in records[0]:
        turns: dict[int, list[Mapping[str, Any]]] = {}
        for each in records:
            for row in each["by_turn"]:
                turns.setdefault(row["turn"], []).append(row)
        average["by_turn"] = [
            {"turn": turn, "count": sum(row["count"] for row in rows)} | _pooled(rows)
            for turn, rows in sorted(turns.items())
        ]
    return average


def _pooled(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, and limits where the metric has them, of one metric with several seeds; as the module's docstring says."""
    with_mean = [each for each in records if each["mean"] is not None]
    mean = _mean([each["mean"] for each in with_mean])
    if "low" not in records[0]:
        return {"mean": mean}
    bounded = [each for each in with_mean if each["low"] is not None and each["high"] is not None]
    if mean is None or not bounded:
        return {"mean": mean, "low": None, "high": None}
    between = 0.0
    if len(with_mean) > 1:
        variance = sum((each["mean"] - mean) ** 2 for each in with_mean) / (len(with_mean) - 1)
        between = t_quantile(len(with_mean) - 1) * math.sqrt(variance / len(with_mean))
    below, above = (sum(abs(each[side] - each["mean"]) for each in bounded) / len(bounded) for side in ("low", "high"))
    return {"mean": mean, "low": mean - math.hypot(between, below), "high": mean + math.hypot(between, above)}


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if finite else None


def latest(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last measurement of ``calibrated``, or else of the first arm that met a simulator; None without one.

    ``policy``, ``simulator`` and ``history_shift`` by turn; ``bound`` only where it is exact; ``exploitation`` over
    the whole of training.
    """
    names = [name for name in (CALIBRATED, *arms) if any(r["simulator"] for r in arms.get(name, {}).get("shift", ()))]
    if not names:
        return None
    records = arms[names[0]]["shift"]
    last = records[-1]
    by_turn = {name: last[name]["by_turn"] if last[name] else [] for name in BY_TURN}
    exploitation = [{"update": r["update"], **r["exploitation"]} for r in records if r["exploitation"]]
    return {
        "arm": names[0], "update": last["update"], **by_turn, "bound": last["bound"],
        "shift_index": last["shift_index"], "exploitation": exploitation,
    }  # fmt: skip
