"""Judges that are programs: fair ones, biased ones, and ones that fail."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Turn
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.judges.base import NoVerdict, Verdict


def quality_of(turns: Sequence[Turn]) -> float:
    """From 0 to 1: what dialogues of these tests say of themselves, ``quality 3`` of 1 to 5."""
    found = re.search(r"quality (\d)", " ".join(turn.text for turn in turns))
    return (int(found[1]) - 1) / 4 if found else 0.5


class MadeUpJudge:
    """Scores the quality, or something else."""

    @dataclass(frozen=True)
    class Config:
        likes: Literal["quality", "length", "first"] = "quality"
        breaks: str = ""
        """Dialogues with this word get no verdict."""
        final: bool = True
        """Whether it would be no use to ask again."""
        delays: list[int] = field(default_factory=list)
        """Turns of the event loop before each answer, one after the other."""

    def __init__(self, config: Config, *, endpoints: Any = None) -> None:
        self.config, self.asked = config, 0

    async def verdict(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Verdict:
        self.asked += 1
        for _ in range(self.config.delays[self.asked % len(self.config.delays)] if self.config.delays else 0):
            await asyncio.sleep(0)
        said = [turn.text for turn in turns[1:] if turn.side is Side.POLICY]
        if self.config.breaks and any(self.config.breaks in turn.text.split() for turn in turns):
            raise NoVerdict("made up") if self.config.final else RolloutFailure("made up")
        if self.config.likes == "length":
            return Verdict(score=0.9 * min(1.0, len("".join(said)) / 1000) + 0.1 * quality_of(turns))
        return Verdict(score=quality_of(turns))

    async def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str, outcome: Outcome | None) -> Outcome:
        verdict = await self.verdict(scenario, turns, ending)
        return Outcome(reward=verdict.score, success=verdict.score > 0.5)

    async def preference(self, first: Dialogue, second: Dialogue) -> float:
        if self.config.likes == "first":
            return 1.0
        difference = quality_of(first.turns) - quality_of(second.turns)
        return 0.5 if not difference else float(difference > 0)
