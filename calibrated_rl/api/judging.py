"""Checks a judge against people's ratings of the same dialogues."""

import asyncio
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from calibrated_rl.api.settings import allowed
from calibrated_rl.config.judging import JudgingConfig, load_judging
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.endpoints.registry import Endpoints
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.judges.agreement import MEANINGS, PairVotes, Scale, agreement, length_of, position
from calibrated_rl.judges.base import Verdict
from calibrated_rl.judges.checked import CheckedJudge, build_judge
from calibrated_rl.judges.ratings import OF_OUTCOME, rating_of, refuse_unrated
from calibrated_rl.rollout.judging import judge_with_retries
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.settings.fields import NotNegative, Seed
from calibrated_rl.shift.sources import read_source, run_folder, sample_dialogues
from calibrated_rl.statistics.intervals import Interval

logger = logging.getLogger(__name__)

T = TypeVar("T")
ACCOUNT = "judge check"
"""Who pays for the answers."""
FOLDER = Path("runs") / "judge-check"
"""Where answers are kept, for dialogues that are of no run."""


@dataclass(frozen=True, kw_only=True)
class JudgeCheck:
    """How far a judge agrees with people's ratings."""

    source: str
    rating: str
    scale: tuple[float, float]
    """Of the ratings."""
    dialogues: int
    unrated: int
    """Dialogues without the rating, left out."""
    judged: int
    """Rated dialogues with a verdict: those that the estimates are of."""
    failed: Mapping[str, int]
    """Rated dialogues without a verdict, left out, by reason."""
    pairs: int
    """Pairs that were compared in both orders."""
    pairs_failed: Mapping[str, int]
    estimates: Mapping[str, Interval]
    """By name (``judges/agreement.py`` says what they mean), with 95 % intervals; NaN where the data leave them
    undefined."""
    asked: Mapping[str, float]
    """What the endpoints did for it, such as ``endpoint/judge/answers`` and ``endpoint/judge/cost``."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is undefined is None."""
        return {
            "source": self.source, "rating": self.rating, "scale": list(self.scale), "dialogues": self.dialogues,
            "unrated": self.unrated, "judged": self.judged, "failed": dict(self.failed), "pairs": self.pairs,
            "pairs_failed": dict(self.pairs_failed),
            "estimates": {name: estimate.as_dict() for name, estimate in self.estimates.items()},
            "asked": dict(self.asked),
        }  # fmt: skip

    def table(self) -> str:
        """The estimates as lines of text, below what they are of."""
        low, high = self.scale
        lines = [
            f"{self.judged} dialogues of {self.source} judged and rated ({self.rating}, {low:g} to {high:g})"
            f"{_left_out(self.failed, 'without a verdict')}" + (f"; {self.unrated} unrated" if self.unrated else "")
        ]
        if self.pairs or self.pairs_failed:
            lines.append(
                f"{self.pairs} pairs compared in both orders{_left_out(self.pairs_failed, 'without an answer')}"
            )
        rows = [("estimate", "value", "95 % interval", "")]
        rows += [(name, *_numbers(estimate), MEANINGS[name]) for name, estimate in self.estimates.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join(lines)


def check_judge(
    source: str | os.PathLike[str],
    rating: str,
    *,
    config: str | os.PathLike[str] | None = None,
    limit: int = 0,
    pairs: int = 0,
    scale: tuple[float, float] | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> JudgeCheck:
    """Let a judge score dialogues that people have rated, and compare. Starts nothing; answers are kept, and a second
    check asks only for what is not there.

    Args:
        source: as in ``measure_shift``: a file of logs, ``RUN@ARM``, ``RUN@logs/held_out``.
        rating: a number of the dialogues' metadata, by its dotted name; or ``reward`` or ``success``.
        config: a file with ``judge``, ``judge_config`` and ``endpoints``, such as a run's; None: that of the run that
            ``source`` is of.
        limit: at most so many random dialogues of those that are rated; 0: all.
        pairs: so many pairs of different dialogues are compared in both orders, for the bias of position.
        scale: least and largest rating that there could have been; None: those that there are.
        seed: of random draws.
        folder: where answers are kept (an endpoint's own ``cache`` comes first); None: the run's folder, or
            ``runs/judge-check``.

    Raises:
        UserError: the set, the rating or the config cannot be used, or not one dialogue was given a verdict.
    """
    for name, hint, value in (("limit", NotNegative, limit), ("pairs", NotNegative, pairs), ("seed", Seed, seed)):
        allowed(name, hint, value)
    name = str(source)
    run = run_folder(name)
    settings = load_judging(_config_file(config, run, name))
    read = read_source(name)
    refuse_unrated(read.dialogues, rating, name)
    rated = [dialogue for dialogue in read.dialogues if rating_of(dialogue, rating) is not None]
    scale_of_all = _scale([_rated(dialogue, rating) for dialogue in rated], scale, rating)
    chosen, progress = sample_dialogues(rated, limit, seed), Progress()
    endpoints = Endpoints(settings.endpoints, Path(folder) if folder is not None else run or FOLDER)
    try:
        judge = _judge(settings, endpoints, pairs)
        verdicts, failed = _verdicts(judge, chosen, progress)
        if not verdicts:
            raise UserError(f"{name}: the judge gave no verdict on any of {len(chosen)} dialogues ({_told(failed)})")
        compared, pairs_failed = _compared(judge, [d for d, _ in verdicts], rating, pairs, seed, progress)
        asked = endpoints.metrics()
    finally:
        endpoints.close()
        progress.close()
    estimates = agreement(
        np.array([_rated(dialogue, rating) for dialogue, _ in verdicts]),
        np.array([verdict.score for _, verdict in verdicts]),
        np.array([length_of(dialogue) for dialogue, _ in verdicts], np.float64),
        [verdict.votes for _, verdict in verdicts],
        scale_of_all, seed,
    )  # fmt: skip
    return JudgeCheck(
        source=name, rating=rating, scale=(scale_of_all.lowest, scale_of_all.highest), dialogues=len(read.dialogues),
        unrated=len(read.dialogues) - len(rated), judged=len(verdicts), failed=failed, pairs=len(compared),
        pairs_failed=pairs_failed, estimates=estimates | (position(compared, seed) if pairs else {}), asked=asked,
    )  # fmt: skip


def _config_file(config: str | os.PathLike[str] | None, run: Path | None, name: str) -> Path:
    if config is not None:
        return Path(config)
    if run is None:
        raise UserError(f"{name} is of no run, whose config could name the judge: name a file that does (config)")
    return run / "config.yaml"


def _judge(settings: JudgingConfig, endpoints: Endpoints, pairs: int) -> CheckedJudge:
    judge = build_judge(settings.judge, settings.judge_config, "judge_config", endpoints)
    if not judge.scores:
        raise UserError(f"the judge {settings.judge} has no method 'verdict', whose score is compared with ratings")
    if pairs and not judge.compares:
        raise UserError(f"the judge {settings.judge} has no method 'preference': it cannot be asked about pairs")
    endpoints.charge_to(ACCOUNT)
    return judge


def _rated(dialogue: Dialogue, rating: str) -> float:
    value = rating_of(dialogue, rating)
    assert value is not None, "only rated dialogues are chosen"
    return value


def _scale(ratings: Sequence[float], given: tuple[float, float] | None, rating: str) -> Scale:
    if given is None:
        given = (0.0, 1.0) if rating == [*OF_OUTCOME][1] else (min(ratings), max(ratings))
    lowest, highest = given
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest <= highest):
        raise UserError(f"the scale {lowest:g} to {highest:g} is none: two finite numbers, the least first")
    if outside := [value for value in ratings if not lowest <= value <= highest]:
        raise UserError(f"the scale is {lowest:g} to {highest:g}, and a dialogue has the {rating} {outside[0]:g}")
    return Scale(lowest=lowest, highest=highest)


def _verdicts(
    judge: CheckedJudge, dialogues: Sequence[Dialogue], progress: Progress
) -> tuple[list[tuple[Dialogue, Verdict]], Counter[str]]:
    def asks(dialogue: Dialogue) -> Callable[[], Coroutine[Any, Any, Verdict]]:
        return lambda: judge.verdict(dialogue.scenario, dialogue.turns, dialogue.ending)

    results, failed = _all([asks(dialogue) for dialogue in dialogues], progress.ticks("judging", len(dialogues)))
    return [(d, verdict) for d, verdict in zip(dialogues, results, strict=True) if verdict is not None], failed


def _compared(
    judge: CheckedJudge, dialogues: Sequence[Dialogue], rating: str, count: int, seed: int, progress: Progress
) -> tuple[list[PairVotes], Counter[str]]:
    """``count`` random pairs in both orders. No dialogue is in two of them: they would not be independent."""
    if count > len(dialogues) // 2:
        logger.warning(f"{count} pairs were asked for, and {len(dialogues)} dialogues make {len(dialogues) // 2}")
    order = np.random.default_rng((seed, 7)).permutation(len(dialogues)).tolist()
    drawn = [(dialogues[a], dialogues[b]) for a, b in zip(order[0::2], order[1::2], strict=False)][:count]

    def asks(a: Dialogue, b: Dialogue) -> Callable[[], Coroutine[Any, Any, tuple[float, float]]]:
        async def both() -> tuple[float, float]:
            first, swapped = await asyncio.gather(judge.preference(a, b), judge.preference(b, a))
            return first, swapped

        return both

    results, failed = _all([asks(*pair) for pair in drawn], progress.ticks("comparing", len(drawn)))
    return [
        PairVotes(first=votes[0], swapped=votes[1], rating=_rated(a, rating), other_rating=_rated(b, rating))
        for (a, b), votes in zip(drawn, results, strict=True)
        if votes is not None
    ], failed


def _all(
    asked: Sequence[Callable[[], Coroutine[Any, Any, T]]], tick: Callable[[], None]
) -> tuple[list[T | None], Counter[str]]:
    """The results, None for each that failed after all, and the reasons of those."""
    failed: Counter[str] = Counter()

    async def one(ask: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        try:
            return await judge_with_retries(ask, lambda failure: None)
        except RolloutFailure as failure:
            failed[failure.reason] += 1
            return None
        finally:
            tick()

    async def every() -> list[T | None]:
        return await asyncio.gather(*map(one, asked))

    return run_to_end(every()), failed


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def _left_out(counts: Mapping[str, int], what: str) -> str:
    return f"; {sum(counts.values())} {what} ({_told(counts)})" if counts else ""


def _numbers(estimate: Interval) -> tuple[str, str]:
    value = f"{estimate.mean:.3f}" if math.isfinite(estimate.mean) else "undefined"
    known = math.isfinite(estimate.low) and math.isfinite(estimate.high)
    return value, f"{estimate.low:.3f} .. {estimate.high:.3f}" if known else "undefined"
