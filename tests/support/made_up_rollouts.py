"""Rollouts for tests of the replay store."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from calibrated_rl.data.dialogue import (
    Dialogue,
    Outcome,
    Scenario,
    Side,
    Source,
    Split,
    TokenSequence,
    Turn,
)
from calibrated_rl.replay.store import ReplayStore

SCENARIO = Scenario(id="s", split=Split.CALIBRATION, policy_instructions="p", user_instructions="u", greeting="hello")


def tokens_of(versions: list[int]) -> TokenSequence:
    """Two scaffold tokens, then one own token of each version."""
    n = len(versions) + 2
    own = np.arange(n) >= 2
    return TokenSequence(
        ids=np.arange(n, dtype=np.int32),
        mask=own,
        logprobs=np.where(own, -0.5, np.nan).astype(np.float32),
        versions=np.array([-1, -1, *versions], np.int32),
        turns=np.where(own, 1, -1).astype(np.int32),
    )


def rollout(group: str, member: int, *, version: int = 0, size: int = 2, **changes: Any) -> Dialogue:
    fields: dict[str, Any] = {
        "id": f"{group}/{member}",
        "task": "t",
        "scenario": SCENARIO,
        "turns": (Turn(side=Side.POLICY, text="hello", source=Source.GREETING),),
        "ending": "max_turns",
        "outcome": Outcome(reward=float(member), success=False),
        "kind": "rollout",
        "arm": "a",
        "group_id": group,
        "group_size": size,
        "update": version,
        "policy_tokens": tokens_of([version]),
    }
    return Dialogue(**fields | changes)


def group(name: str, **changes: Any) -> list[Dialogue]:
    return [rollout(name, i, **changes) for i in range(2)]


def ids(groups: list[list[Dialogue]]) -> list[list[str]]:
    return [[d.id for d in members] for members in groups]


def assert_same(a: Dialogue, b: Dialogue) -> None:
    for f in dataclasses.fields(Dialogue):
        left, right = getattr(a, f.name), getattr(b, f.name)
        if isinstance(left, TokenSequence):
            for g in dataclasses.fields(TokenSequence):
                x, y = getattr(left, g.name), getattr(right, g.name)
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
                assert y.flags.writeable
        else:
            assert left == right, f.name
            assert type(left) is type(right), f.name


def filled(folder: Path) -> None:
    store = ReplayStore(folder)
    for name in ("g1", "g2", "g3"):
        store.append(group(name))


def resign(path: Path) -> None:
    """Give an altered segment a valid checksum."""
    digest = blake3(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".b3").write_text(f"{digest}  {path.name}\n")
