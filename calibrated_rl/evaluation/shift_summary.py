"""What the arms measured of their own distance from real dialogues, put together for ``summary.json``.

Over training seeds means are averaged, and so are the limits of intervals: those are then wider than an interval of
the average would be.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.shift.in_run import FIGURES
from calibrated_rl.shift.transfer import OutcomeTransfer, PolicyOutcomes

TRANSFER = ("success_ece", "rank_spearman", "rank_kendall", "exploitation")
BY_TURN = ("policy", "simulator", "simulator_estimated", "history_shift")


def records_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record an update, from the results of one arm with all its seeds; as ``in_run.figures_of`` gives them."""
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    for result in results:
        for record in result.get("shift", ()):
            by_update.setdefault(record["update"], []).append(record)
    merged = []
    for update, records in sorted(by_update.items()):
        figures = {name: _average([r[name] for r in records if r[name] is not None]) for name in FIGURES}
        bands = [r["null_band"] for r in records if r["null_band"] is not None]
        band = [min(low for low, _ in bands), max(high for _, high in bands)] if bands else None
        refused = {name: why for record in records for name, why in record["refused"].items()}
        merged.append({"update": update, "null_band": band, "refused": refused, **figures})
    return merged


def transfer_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Does what policies earn with the simulator they train with foretell what they earn with people? Over the
    checkpoints that were measured while training, of all arms (``all``) and of each: ``OutcomeTransfer``'s figures."""
    outcomes: dict[str, list[PolicyOutcomes]] = {}
    for result in results:
        for record in result.get("shift", ()):
            if record.get("outcomes"):
                name = f"{result['arm']}-{result['seed']}-{record['update']}"
                one = PolicyOutcomes(policy=name, **record["outcomes"])
                for group in ("all", result["arm"]) if one.common() else ():
                    outcomes.setdefault(group, []).append(one)
    found = {}
    for group, policies in outcomes.items():
        measured = OutcomeTransfer().measure(policies)
        figures = {name: measured[name].as_dict() for name in TRANSFER}
        found[group] = {"policies": len(policies), **figures}
    return found


def _average(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not found:
        return None
    numbers = [key for key in ("mean", "low", "high", "early", "late") if key in found[0]]
    average: dict[str, Any] = {key: _mean([each[key] for each in found]) for key in numbers}
    if "rewards" in found[0]:
        average["rewards"] = found[0]["rewards"]
    if bands := [each["null_band"] for each in found if each.get("null_band")]:
        average["null_band"] = [min(low for low, _ in bands), max(high for _, high in bands)]
    if "by_turn" in found[0]:
        turns: dict[int, list[Mapping[str, Any]]] = {}
        for each in found:
            for row in each["by_turn"]:
                turns.setdefault(row["turn"], []).append(row)
        average["by_turn"] = [
            {"turn": turn, "count": sum(row["count"] for row in rows)}
            | {key: _mean([row[key] for row in rows]) for key in ("mean", "low", "high")}
            for turn, rows in sorted(turns.items())
        ]
    return average


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def latest(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last measurement of ``calibrated``, or else of the first arm that met a simulator; None without one.

    ``policy``, ``simulator`` and ``history_shift`` by turn; ``bound`` only where it is exact; ``exploitation`` over
    the whole of training.
    """
    names = [name for name in ("calibrated", *arms) if any(r["simulator"] for r in arms.get(name, {}).get("shift", ()))]
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
