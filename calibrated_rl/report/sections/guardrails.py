"""Turns that a guardrail marked or the token limit cut, and dialogues that were dropped: counted, never silent."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrated_rl.report.arms import style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite, mapping

PARTIES = {
    "user": "broken by the user model",
    "judge": "broken by a judge",
    "tool": "broken by a tool",
    "engine": "lost with a replica",
}


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that went wrong, and how often."""

    event: str
    reason: str
    times: float | None
    total: float | None = None
    """Out of so many; None where a share says nothing."""

    @property
    def share(self) -> float | None:
        return None if self.times is None or not self.total else self.times / self.total


@dataclass(frozen=True, slots=True)
class Guardrails:
    template: ClassVar[str] = "guardrails.jinja"
    happenings: list[Happening]
    is_counted: bool
    """Whether the run counted them."""


def view(run: RunFiles) -> Guardrails:
    happenings = [*_marked(run), *_cut(run), *_tries(run), *_not_scored(run)]
    return Guardrails(happenings, is_counted="flaws" in run.summary)


def _marked(run: RunFiles) -> Iterator[Happening]:
    for key, event in (("flaws", "turn marked by a guardrail"), ("dropped", "dropped and run again")):
        for name, times in mapping(run.summary, key).items():
            yield Happening(event, name.replace("_", " ").replace("/", ": "), finite(times))


def _cut(run: RunFiles) -> Iterator[Happening]:
    sampled = mapping(run.summary, "sampled")
    for side, times in mapping(run.summary, "cut").items():
        yield _share("turn cut at the token limit", side, times, sampled.get(side))


def _tries(run: RunFiles) -> Iterator[Happening]:
    by_party: Counter[str] = Counter()
    for name, times in mapping(run.summary, "tries").items():
        by_party[name.rpartition("/")[2]] += finite(times) or 0.0  # type: ignore[assignment]
    for party, why in PARTIES.items():
        if by_party[party]:
            yield _share("tries to run a dialogue", why, by_party[party], by_party.total())


def _not_scored(run: RunFiles) -> Iterator[Happening]:
    for arm, metrics in run.arms().items():
        if times := finite(metrics.get("not_scored")):
            yield Happening(f"held-out dialogue, {style(arm).label}", "broke in every try: not scored", times)


def _share(event: str, reason: str, count: Any, total: Any) -> Happening:
    return Happening(event, reason, finite(count), finite(total))
