"""The account of a run's groups: what adds up, and each way in which it does not."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibrated_rl.data.dialogue import Dialogue, TokenSequence
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.run.audit import audit_run
from tests.support.made_up_logs import dialogue, policy, user
from tests.support.paths import ROOT

SAMPLED = TokenSequence(
    ids=np.zeros(1, np.int32), mask=np.ones(1, np.bool_), logprobs=np.zeros(1, np.float32),
    versions=np.zeros(1, np.int32), turns=np.ones(1, np.int32),
)  # fmt: skip


def group(update: int, number: int, size: int = 2) -> list[Dialogue]:
    made = dialogue("p", policy("hi"), user("yes"))
    name = f"calibrated-0-{update}-{number}"
    return [
        replace(made, id=f"{name}-{member}", kind="rollout", arm="calibrated", group_id=name, group_size=size,
                update=update)
        for member in range(size)
    ]  # fmt: skip


def finished(run: Path, requested: dict[int, int], dropped: dict[str, str], extra: Sequence[str] = ()) -> None:
    metrics = [{"update": u, "name": "groups_requested", "value": float(n)} for u, n in requested.items()]
    (run / "arms").mkdir(parents=True, exist_ok=True)
    result = {"metrics": metrics, "groups_dropped": dropped} | ({"groups_extra": [*extra]} if extra else {})
    (run / "arms" / "calibrated-0.json").write_text(json.dumps(result))
    (run / "config.yaml").write_text("")


def deliver(store: ReplayStore, update: int, groups: int) -> None:
    assert len(store.sample(groups, update=update, max_staleness=5)) == groups


def whole(run: Path) -> ReplayStore:
    """Two updates of two groups; of the second update one group was dropped."""
    store = ReplayStore(run / "replay" / "calibrated-0")
    store.append([*group(0, 0), *group(0, 1)])
    deliver(store, 0, 2)
    store.append(group(1, 1))
    deliver(store, 1, 1)
    finished(run, {0: 2, 1: 2}, {"calibrated-0-1-0": "with a dialogue that could not be held",
                                 "calibrated/held_out-0-1-0": "of the evaluation"})  # fmt: skip
    return store


def test_it_adds_up_also_after_a_rewind(tmp_path: Path) -> None:
    store = whole(tmp_path)
    (account,) = audit_run(tmp_path)
    assert account.problems == () and (account.requested, account.delivered) == (4, 3)
    assert account.dropped == {"with a dialogue that could not be held": 1}
    store.rewind(1)  # what update 1 was given is taken back, and given again
    deliver(store, 1, 1)
    assert audit_run(tmp_path) == [account]


def test_groups_that_became_too_stale_are_dropped_for_that_reason(tmp_path: Path) -> None:
    store = whole(tmp_path)
    store.append([replace(each, policy_tokens=SAMPLED) for each in group(1, 2)])  # with weights of version 0
    assert store.sample(1, update=6, max_staleness=5) == []
    finished(tmp_path, {0: 2, 1: 3}, {"calibrated-0-1-0": "with a dialogue that could not be held"})
    (account,) = audit_run(tmp_path)
    assert account.problems == () and (account.requested, account.delivered) == (5, 3)
    assert account.dropped == {"with a dialogue that could not be held": 1, "too stale": 1}


def test_groups_that_took_the_place_of_others_were_asked_for_too(tmp_path: Path) -> None:
    """One replaced the dropped 1-0; another, without signal, was replaced by a third."""
    store = whole(tmp_path)
    store.append(group(1, 4))
    deliver(store, 1, 1)
    dropped = {"calibrated-0-1-0": "without an opening turn (user_empty)", "calibrated-0-1-2": "x",
               "calibrated-0-1-3": "without signal"}  # fmt: skip
    extra = [f"calibrated-0-1-{number}" for number in (2, 3, 4)]
    finished(tmp_path, {0: 2, 1: 2}, dropped, extra)
    (account,) = audit_run(tmp_path)
    assert account.problems == () and (account.requested, account.delivered) == (7, 4)
    finished(tmp_path, {0: 2, 1: 2}, dropped, [*extra, "calibrated-0-1-5"])
    (account,) = audit_run(tmp_path)
    assert account.problems == ("group calibrated-0-1-5: requested, neither handed out nor dropped",)
    finished(tmp_path, {0: 2, 1: 2}, dropped, extra[:2])
    (account,) = audit_run(tmp_path)
    assert account.problems == ("group calibrated-0-1-4: handed out and never requested",)


def repeat(run: Path, store: ReplayStore) -> None:
    """The log of deliveries says twice what was handed out once."""
    file = run / "replay" / "calibrated-0" / "deliveries.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[-1]]))


def forget(run: Path, store: ReplayStore) -> None:
    finished(run, {0: 2, 1: 2}, {})


def strange(run: Path, store: ReplayStore) -> None:
    store.append(group(1, 7))
    deliver(store, 1, 1)


def contradict(run: Path, store: ReplayStore) -> None:
    finished(run, {0: 2, 1: 2}, {"calibrated-0-1-0": "reason", "calibrated-0-1-1": "reason"})


def lose(run: Path, store: ReplayStore) -> None:
    """The first segment is no longer what was written: its dialogues cannot be read."""
    file = min((run / "replay" / "calibrated-0").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (repeat, "group calibrated-0-1-1: handed out 2 times"),
        (forget, "group calibrated-0-1-0: requested, neither handed out nor dropped"),
        (strange, "group calibrated-0-1-7: handed out and never requested"),
        (contradict, "group calibrated-0-1-1: handed out and dropped"),
        (lose, "group calibrated-0-0-0: handed out with 1 of its dialogues missing"),
    ],
)
def test_what_does_not_add_up_is_named(tmp_path: Path, harm: Callable[[Path, ReplayStore], None], problem: str) -> None:
    harm(tmp_path, whole(tmp_path))
    (account,) = audit_run(tmp_path)
    assert problem in account.problems


def test_the_command_ends_with_1_where_it_does_not_add_up(tmp_path: Path) -> None:
    def job(run: Path) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "jobs" / "audit.py"), str(run)]
        return subprocess.run(command, capture_output=True, text=True, timeout=360)

    whole(tmp_path)
    done = job(tmp_path)
    assert done.returncode == 0 and "it adds up" in done.stdout, done.stderr
    assert "1 with a dialogue that could not be held" in done.stdout
    finished(tmp_path, {0: 40, 1: 2}, {})
    done = job(tmp_path)
    assert done.returncode == 1 and "calibrated-0: and 29 more" in done.stdout and "it adds up" not in done.stdout
    nothing = job(tmp_path / "nothing")
    assert nothing.returncode == 2 and nothing.stderr.startswith("error: there is no run folder")
