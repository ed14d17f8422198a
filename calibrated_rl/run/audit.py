"""Audits a run's account of its groups from the files of the run; nothing is started.

Each group that an arm requested must have been delivered to the learner exactly once, complete, or have been dropped
for a named reason. The arm's result lists the requested groups (``groups_requested`` by update, and ``groups_extra``,
the ids of those that were requested in place of others) and the dropped ones; the store's log of deliveries lists the
delivered ones, where a rewind takes back those that a resumed run repeats.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.replay.deliveries import DeliveryLog
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.run.arm_results import read_result


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of one arm and seed."""

    name: str
    requested: int
    delivered: int
    """Groups handed out, each counted once."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    problems: tuple[str, ...] = ()
    """Discrepancies, a line each."""


def audit_run(run: Path) -> list[Account]:
    """The accounts of all arms and seeds that ``run`` has finished.

    Raises:
        UserError: it is no run folder, or no arm of it is finished.
    """
    files = sorted((run / "arms").glob("*.json"))
    if not files:
        raise UserError(f"{run} has no finished arm: there is no arms/ARM-SEED.json in it")
    return [audit_arm(file.stem, read_result(file), run / "replay" / file.stem) for file in files]


def audit_arm(name: str, result: Mapping[str, Any], store: Path) -> Account:
    """The account of the arm and seed called ``name``, from its ``result`` and its replay ``store``."""
    requested = [
        f"{name}-{int(metric['update'])}-{number}"
        for metric in result["metrics"]
        if metric["name"] == "groups_requested"
        for number in range(int(metric["value"]))
    ]
    requested = list(dict.fromkeys([*requested, *result.get("groups_extra", ())]))
    if not requested:
        return Account(name=name, requested=0, delivered=0)
    if not store.is_dir():
        return Account(name=name, requested=len(requested), delivered=0, problems=(f"there is no {store}",))
    dropped: dict[str, str] = dict(result.get("groups_dropped", {}))
    dropped |= dict.fromkeys(_events(store, "stale"), "too stale")
    handed_out = Counter(_events(store, "delivered"))
    incomplete = list(
        _incomplete_groups(opened_store := ReplayStore(store), handed_out)
    )  # reads all segments, so that ``refused`` is complete afterwards
    problems = [f"{file}: {reason}" for file, reason in opened_store.refused.items()]
    problems += _named("handed out {} times", ((g, n) for g, n in handed_out.items() if n > 1))
    problems += _named("handed out and dropped", ((g, 0) for g in handed_out if g in dropped))
    problems += _named("handed out and never requested", ((g, 0) for g in handed_out.keys() - set(requested)))
    unaccounted = [g for g in requested if g not in handed_out and g not in dropped]
    problems += _named("requested, neither handed out nor dropped", ((g, 0) for g in unaccounted))
    problems += _named("handed out with {} of its dialogues missing", incomplete)
    return Account(
        name=name, requested=len(requested), delivered=len(handed_out), problems=tuple(problems),
        dropped=dict(Counter(dropped[group] for group in requested if group in dropped)),
    )  # fmt: skip


def _events(store: Path, kind: str) -> list[str]:
    """Ids of the groups ``delivered`` or ``stale``, as often as they were, without what a rewind took back."""
    events_kept: list[tuple[int, str]] = []
    for event in DeliveryLog(store).read()[0]:
        if "rewind" in event:
            events_kept = [(update, group) for update, group in events_kept if update < event["rewind"]]
        else:
            events_kept += [(event["update"], group) for _, group in event[kind]]
    return [group for _, group in events_kept]


def _incomplete_groups(store: ReplayStore, handed_out: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """Groups of which dialogues are missing, and how many; every segment is read and checked."""
    ids_by_group: dict[str, set[str]] = {}
    size: dict[str, int] = {}
    for table in store.scan():
        for row in table.select(["kind", "group_id", "group_size", "id"]).to_pylist():
            if row["kind"] == "rollout":
                ids_by_group.setdefault(row["group_id"], set()).add(row["id"])
                size[row["group_id"]] = row["group_size"]
    for group in handed_out:
        if n_missing := size.get(group, 1) - len(ids_by_group.get(group, ())):
            yield group, n_missing


def _named(template: str, groups: Iterable[tuple[str, int]]) -> list[str]:
    return [f"group {group}: {template.format(number)}" for group, number in groups]
