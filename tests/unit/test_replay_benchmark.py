"""The rows about replay, at sizes that take a second: what they say, not how fast it is."""

from pathlib import Path

import pytest

from calibrated_rl.replay.schema import from_table
from calibrated_rl.replay.store import ReplayStore
from tools.bench.made_dialogues import made_table, renamed
from tools.bench.replay_durable import ReplayDurable
from tools.bench.replay_memory import ReplayMemory


def test_made_tables_are_dialogues_with_names_of_their_own() -> None:
    table = made_table(16, tokens=5)
    store = ReplayStore()
    assert store.append_table(renamed(table, 0, update=0)) == store.append_table(renamed(table, 1, update=3)) == 16
    assert store.ready() == 4 and not store.sample(4, update=3, max_staleness=0)
    assert store.counts()["groups_stale"] == 2, "those of update 0"
    assert all(d.policy_tokens is not None and len(d.policy_tokens) == 5 for d in from_table(store.table()))


@pytest.mark.slow
def test_the_row_in_memory() -> None:
    config = ReplayMemory.Config(dialogues=32, tokens=10, appends=2, small=100, large=300, samples=2)
    row = ReplayMemory(config).measure()
    assert row.value > 0 and row.limit == row.goal == 1 and "of 300" in row.how


def test_the_durable_row_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    config = ReplayDurable.Config(
        folder=str(tmp_path), dialogues=32, tokens=10, appends=2, many=2_000, many_at_once=24, short=5
    )
    row = ReplayDurable(config).measure()
    assert row.ratio == row.value / row.limit > 0 and row.goal == 0.8 and "84 segments" in row.how
    assert not list(tmp_path.iterdir())
