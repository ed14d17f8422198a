"""The sections about shift while training goes on: by turn and training step, the bound, exploitation."""

from collections.abc import Sequence
from typing import Any

from calibrated_rl.report import markup
from calibrated_rl.report.arms import in_order, style
from calibrated_rl.report.plots import shift as plots_shift
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import by_turn, finite, interval, look_up, mapping

MAPS = {"policy": "policy shift ε", "simulator": "simulator shift δ", "history_shift": "history shift"}

STAKES = {
    "terminal": "One terminal reward of range R, so R · Σ δ over the turns of a dialogue.",
    "per turn": "A reward of range r after each of at most H turns, so r · Σ (H − t + 1) δ over a dialogue.",
    "terminal and per turn": "A terminal reward of range R, and one of range r after each of at most H turns, so "
    "Σ (R + r (H − t + 1)) δ over a dialogue.",
}
"""Which rewards there are, and so which bound it is."""


def shift_in_training(run: RunFiles) -> str:
    """Heat maps, bound and exploitation; nothing where no arm has measured anything."""
    records = {arm: found for arm in in_order(run.arms()) if (found := _records(run, arm))}
    if not records:
        return ""
    panels = {title: by_arm for name, title in MAPS.items() if (by_arm := _maps(records, name))}
    exact = any(record.get("bound") for found in records.values() for record in found)
    key, word = ("bound", "bound of |J real − J train|") if exact else ("shift_index", "shift index (no bound)")
    bounds = {arm: _line(found, key) for arm, found in records.items()}
    exploitation = {arm: _line(found, "exploitation") for arm, found in records.items()}
    halves = {arm: half for arm, found in records.items() if (half := _halves(found, key))}
    parts = [
        markup.note(
            "How far training was from real dialogues, turn by turn, on monitor scenarios. ε: would the logged "
            "policy have gone on like this? δ: would people have replied like this? History shift: whole histories "
            "up to that turn, accumulated. δ is "
            + ("exact; ε is measured against the start of training." if exact else "what a classifier on words finds.")
            + (" Hatched on the scale: what that finds between two halves of people." if _band(records) else "")
        ),
        markup.image(plots_shift.heat_maps(panels, _band(records)), "shift by turn and training step"),
    ]
    if any(bounds.values()) or any(exploitation.values()):
        parts.append(
            markup.note(
                f"{STAKES.get(_rewards(records, key), STAKES['terminal'])} Exploitation: mean return "
                "with the simulator minus with people, on the same scenarios; above 0 the policy earns with the "
                "simulator what people do not pay."
            )
        )
        index_bands = [record.get("shift_index") for found in records.values() for record in found if not exact]
        band = _widest([index.get("null_band") for index in index_bands if index])
        drawn = plots_shift.over_training(_known(bounds), _known(exploitation), halves, word, band)
        parts.append(markup.image(drawn, f"{word} and exploitation"))
    pairs = {arm: pair for arm, found in records.items() if all(pair := _last_pair(found))} if exact else {}
    if pairs:
        parts.append(
            markup.note(
                "The classifier on words beside the exact shift, at the last measurement. Grey: what it finds between "
                "two halves of people's replies."
            )
        )
        parts.append(markup.image(plots_shift.estimated_and_exact(pairs, _band(records)), "estimated and exact shift"))
    return markup.section("Shift while training", *parts, *_transfer(run))


def _transfer(run: RunFiles) -> list[str]:
    """A table: does reward and success with the simulator foretell what people give?"""
    rows = []
    for group, found in mapping(run.summary, "shift", "transfer").items():
        label = "checkpoints of all arms" if group == "all" else style(group).label
        ece, *others = (interval(look_up(found, name)) for name in ("success_ece", "rank_spearman", "exploitation"))
        number = markup.plain(str(look_up(found, "policies")))
        rows.append([markup.plain(label), number, *(markup.cell(value) for value in (ece, *others))])
    if not rows:
        return []
    header = ["policies", "number", "error of success", "rank correlation", "exploitation"]
    words = (
        "Does what a policy earns with the simulator it trains with foretell what it earns with people? Calibration "
        "error of success (one dialogue a scenario: by chance alone it is positive), Spearman's rank correlation of "
        "mean rewards over checkpoints, and the difference in reward."
    )
    return [markup.note(words), markup.table(header, rows)]


def _records(run: RunFiles, arm: str) -> list[dict[str, Any]]:
    found = look_up(run.summary, "arms", arm, "shift")
    return [record for record in found if isinstance(record, dict)] if isinstance(found, list) else []


def _rewards(records: dict[str, list[dict[str, Any]]], key: str) -> str:
    found = (look_up(record, key, "rewards") for of_arm in records.values() for record in of_arm)
    return next((rewards for rewards in found if isinstance(rewards, str)), "terminal")


def _known(lines: dict[str, plots_shift.Points]) -> dict[str, plots_shift.Points]:
    return {arm: points for arm, points in lines.items() if points}


def _maps(records: dict[str, list[dict[str, Any]]], name: str) -> dict[str, plots_shift.Map]:
    maps: dict[str, plots_shift.Map] = {}
    for arm, found in records.items():
        values = {int(r["update"]): by_turn(look_up(r, name, "by_turn")) for r in found}
        if any(values.values()):
            maps[arm] = {update: turns for update, turns in values.items() if turns}
    return maps


def _line(found: list[dict[str, Any]], name: str) -> plots_shift.Points:
    pairs = [(float(record["update"]), interval(record.get(name))) for record in found]
    return [(update, value) for update, value in pairs if value is not None]


def _halves(found: list[dict[str, Any]], name: str) -> tuple[float, float] | None:
    early, late = (finite(look_up(found[-1], name, part)) for part in ("early", "late"))
    return None if early is None or late is None else (early, late)


def _last_pair(found: list[dict[str, Any]]) -> tuple[plots_shift.Points, plots_shift.Points]:
    estimated, exact = (by_turn(look_up(found[-1], name, "by_turn")) for name in ("simulator_estimated", "simulator"))
    return [(float(turn), value) for turn, value in estimated], [(float(turn), value) for turn, value in exact]


def _band(records: dict[str, list[dict[str, Any]]]) -> tuple[float, float] | None:
    return _widest([record.get("null_band") for found in records.values() for record in found])


def _widest(bands: Sequence[Any]) -> tuple[float, float] | None:
    limits = [(finite(low), finite(high)) for low, high in (band for band in bands if band)]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
