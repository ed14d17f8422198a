"""Does a run's account of its groups add up? Reads what the run left; nothing is started.

Each group that an arm asked for must have been handed to the learner exactly once, whole, or have been dropped for a
reason that is named. What was asked for stands in the arm's result (``groups_requested`` by update, and
``groups_extra``, the ids of those that were asked for in place of others), what was dropped as well; what was handed
out, in the store's log of deliveries, where a rewind takes back what a resumed run repeats.
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
    """Of one arm and seed."""

    name: str
    requested: int
    delivered: int
    """Groups handed out, each counted once."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    problems: tuple[str, ...] = ()
    """What does not add up, a line each."""


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
    lost: dict[str, str] = dict(result.get("groups_dropped", {}))
    lost |= dict.fromkeys(_events(store, "stale"), "too stale")
    handed_out = Counter(_events(store, "delivered"))
    torn = list(_torn(opened := ReplayStore(store), handed_out))  # reads everything, so it comes before the question
    problems = [f"{file}: {reason}" for file, reason in opened.refused.items()]
    problems += _named("handed out {} times", ((g, n) for g, n in handed_out.items() if n > 1))
    problems += _named("handed out and dropped", ((g, 0) for g in handed_out if g in lost))
    problems += _named("handed out and never asked for", ((g, 0) for g in handed_out.keys() - set(requested)))
    missing = [g for g in requested if g not in handed_out and g not in lost]
    problems += _named("asked for, neither handed out nor dropped", ((g, 0) for g in missing))
    problems += _named("handed out with {} of its dialogues missing", torn)
    return Account(
        name=name, requested=len(requested), delivered=len(handed_out), problems=tuple(problems),
        dropped=dict(Counter(lost[group] for group in requested if group in lost)),
    )  # fmt: skip


def _events(store: Path, kind: str) -> list[str]:
    """Ids of the groups ``delivered`` or ``stale``, as often as they were, without what a rewind took back."""
    found: list[tuple[int, str]] = []
    for event in DeliveryLog(store).read()[0]:
        if "rewind" in event:
            found = [(update, group) for update, group in found if update < event["rewind"]]
        else:
            found += [(event["update"], group) for _, group in event[kind]]
    return [group for _, group in found]


def _torn(store: ReplayStore, handed_out: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    """Groups of which dialogues are missing, and how many; every segment is read and checked."""
    there: dict[str, set[str]] = {}
    size: dict[str, int] = {}
    for table in store.scan():
        for row in table.select(["kind", "group_id", "group_size", "id"]).to_pylist():
            if row["kind"] == "rollout":
                there.setdefault(row["group_id"], set()).add(row["id"])
                size[row["group_id"]] = row["group_size"]
    for group in handed_out:
        if left := size.get(group, 1) - len(there.get(group, ())):
            yield group, left


def _named(words: str, groups: Iterable[tuple[str, int]]) -> list[str]:
    return [f"group {group}: {words.format(number)}" for group, number in groups]
