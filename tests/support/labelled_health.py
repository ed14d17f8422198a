"""The labelled turns of ``tests/support/health/``: dialogues written for these tests, none taken from elsewhere.

``labelled.jsonl`` was looked at while the detectors were written. ``held_out.jsonl`` was written when they were
finished, and not looked at: whoever changes a detector because of it moves it into the first and writes another. Both
are by the author of the detectors. In each line the last turn is judged: ``labels`` names the mistakes that it shows,
``unclear`` those of which it says nothing, ``about`` the one for which it was written.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Source, Split, Turn
from calibrated_rl.health.base import Detector, UserTurn
from tests.support.paths import ROOT

FOLDER = ROOT / "tests" / "support" / "health"
_SIDES = {"A": (Side.POLICY, Source.POLICY), "U": (Side.USER, Source.SIMULATOR)}


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One labelled turn."""

    id: str
    about: str
    labels: frozenset[str]
    unclear: frozenset[str]
    turn: UserTurn


def labelled(name: str) -> list[Labelled]:
    """All turns of ``NAME.jsonl``."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_labelled(json.loads(line)) for line in lines]


def _labelled(line: dict[str, Any]) -> Labelled:
    turns = tuple(Turn(side=_SIDES[who][0], text=text, source=_SIDES[who][1]) for who, text in line["turns"])
    scenario = Scenario(
        id=line["id"], split=Split.MONITOR, policy_instructions="", user_instructions=line.get("instructions", ""),
        greeting=turns[0].text, goal=line.get("goal", {}),
    )  # fmt: skip
    return Labelled(
        id=line["id"], about=line["about"], labels=frozenset(line["labels"]),
        unclear=frozenset(line.get("unclear", ())), turn=UserTurn(scenario=scenario, turns=turns),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Of one detector on a set."""

    positives: int
    found: int
    """Of the positives."""
    wrong: Sequence[str]
    """Ids of negatives that it found."""
    missed: Sequence[str]
    """Ids of positives that it did not find."""

    @property
    def precision(self) -> float:
        return self.found / max(1, self.found + len(self.wrong))

    @property
    def recall(self) -> float:
        return self.found / max(1, self.positives)


def accuracy(detector: Detector, turns: Sequence[Labelled]) -> Accuracy:
    """``detector`` on ``turns``; a turn that it does not judge counts as not found."""
    clear = [each for each in turns if detector.name not in each.unclear]
    found = {each.id for each in clear if detector.detect(each.turn)}
    positive = {each.id for each in clear if detector.name in each.labels}
    return Accuracy(
        positives=len(positive), found=len(found & positive), wrong=sorted(found - positive),
        missed=sorted(positive - found),
    )  # fmt: skip
