"""Measuring, while an arm trains, how far its dialogues are from real ones: by source and by turn.

Before the first update and after every ``shift.every``-th one, the policy and the simulator as they are now answer on
the monitor split: the policy meets the simulator and, where people are a program, the people; both simulator and
people reply to the same histories; the policy speaks where the logged one did. Nothing of that is learned from.

Training does not wait for most of it. The policy's own turns are drawn and scored before the learner takes its step,
since they are scored with the weights that the step replaces; all dialogues are held while it takes it, when the
engines, which serve these very weights until it is done, would have nothing to do. The figures (``shift/in_run.py``)
are estimated in a process beside training and fetched when the arm is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.evaluation.replies import Answer, answers, exact_replies, matched_with_people
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.rollout.collector import run_to_end
from calibrated_rl.run.parts import Parts
from calibrated_rl.shift.estimators.policy_shift import PolicyLogProbs
from calibrated_rl.shift.in_run import Collected, figures_of
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.stakes import stakes_of
from calibrated_rl.tasks.base import ScriptedHuman

TIMEOUT_S = 1800.0
OVERALL = ("policy", "simulator", "history_shift", "bound", "shift_index", "exploitation")
"""Figures that become metrics of the update."""


class ShiftWatch:
    """The measurements of one arm."""

    def __init__(self, parts: Parts, arm: str, seed: int) -> None:
        self.parts, self.arm, self.seed = parts, arm, seed
        self.done: list[dict[str, Any]] = []
        """Records of an earlier sitting."""
        self._running: list[Any] = []

    def is_due(self, update: int) -> bool:
        """Whether ``update`` is one of those at which is measured."""
        every = self.parts.config.shift.every
        return bool(every) and update % every == 0

    def draw(self, update: int) -> PolicyLogProbs | None:
        """First: the policy's own turns, while the learner's weights are those that it speaks with."""
        return policy_log_probs(self.parts, self._logs(), f"{self.arm}/shift/policy-{self.seed}-{update}")

    def hold(self, update: int, user: ReplicaPool | ScriptedHuman | None) -> "Held":
        """Then: all dialogues and replies. Needs the engines and the store alone.

        Args:
            user: whom the arm trains with; None: nobody answers it (static context RL).
        """
        return hold(self.parts, self._logs(), f"{self.arm}/shift", self.seed, update, user)

    def estimate(self, policy: PolicyLogProbs | None, held: "Held") -> None:
        """At last: let the learner score people's replies, and start estimating the figures."""
        data = collected(self.parts, policy, held)
        first = 0 if self.done or self._running else self.parts.config.shift.null_halvings
        self._running.append(self.parts.beside.run(figures_of, data, first))

    def records(self) -> list[dict[str, Any]]:
        """All figures in the order of the updates.

        Raises:
            PartLost: an estimate is lost, or took longer than ``TIMEOUT_S``.
        """
        self.done += self.parts.beside.fetch(self._running, TIMEOUT_S)
        self._running = []
        return self.done

    def _logs(self) -> list[Dialogue]:
        logs = [log for log in self.parts.logs[Split.MONITOR] if log.user_turn_indices()]
        return logs[: self.parts.config.shift.dialogues]


def overall(record: dict[str, Any]) -> dict[str, float]:
    """The figures over all turns that one measurement gave, as metrics."""
    values = {f"shift/{name}": record[name]["mean"] for name in OVERALL if record[name] is not None}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Held:
    """What was said for one measurement; None where the arm has nothing of the kind."""

    update: int
    people: list[Dialogue] | None
    """The policy's dialogues with people, where those are a program."""
    met: list[Dialogue] | None
    """Its dialogues with the arm's user."""
    by_simulator: bool
    """Whether that user is a simulator."""
    real: list[Dialogue]
    """Dialogues of people at whose histories the simulator replied, too."""
    replies: list[Answer] | None


def hold(
    parts: Parts, logs: Sequence[Dialogue], name: str, seed: int, update: int, user: ReplicaPool | ScriptedHuman | None
) -> Held:
    """Dialogues of the served policy on the scenarios of ``logs``, and replies of the served simulator."""

    def meet(other: ReplicaPool | ScriptedHuman, whom: str) -> list[Dialogue]:
        groups = parts.collector.collect(
            [log.scenario for log in logs], other, group_size=1, arm=f"{name}/{whom}", update=update, seed=seed,
            kind="evaluation",
        )  # fmt: skip
        parts.keep([dialogue for group in groups for dialogue in group])
        return [dialogue for group in groups for dialogue in group]

    people = meet(parts.human, "people") if parts.human is not None else None
    met = None if user is None else people if user is parts.human else meet(user, "simulator")
    real = list(logs) if people is None else [dialogue for dialogue in people if dialogue.user_turn_indices()]
    by_simulator = isinstance(user, ReplicaPool)
    replies = answers(parts, user, real, f"{name}-{seed}-{update}") if isinstance(user, ReplicaPool) else None
    return Held(update=update, people=people, met=met, by_simulator=by_simulator, real=real, replies=replies)


def collected(parts: Parts, policy: PolicyLogProbs | None, held: Held) -> Collected:
    """What the figures are estimated from."""
    exact = None
    if held.by_simulator and parts.human is not None:
        views = [sample.tokens for sample in log_samples(held.real, Side.USER, parts.simulator_chat)]
        sampling = parts.config.simulator.sampling
        scores = parts.learner.log_probs(SIMULATOR, views, sampling.temperature)
        exact = exact_replies(parts.human, held.real, views, scores, sampling.max_turn_tokens)
    with_simulator = held.met if held.by_simulator else None
    people, monitor = held.people, parts.logs[Split.MONITOR]
    return Collected(
        update=held.update,
        policy=policy,
        replies=None if held.replies is None else matched_with_people(parts.task, held.replies),
        exact=exact,
        histories=None if held.met is None else DialogueSets(human=monitor, simulator=held.met),
        with_simulator=None if with_simulator is None else returns(with_simulator),
        with_people=None if people is None else returns(people),
        success_with_simulator=None if with_simulator is None else successes(with_simulator),
        success_with_people=None if people is None else successes(people),
        stakes=stakes_of(parts.task, [*(held.people or ()), *(held.met or ())]),
    )


def returns(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Return of each dialogue by its scenario."""
    return {d.scenario.id: d.outcome.episode_return for d in dialogues if d.outcome is not None}


def successes(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Whether each dialogue succeeded (1) or not (0), by its scenario."""
    return {d.scenario.id: float(d.outcome.success) for d in dialogues if d.outcome is not None}


def policy_log_probs(parts: Parts, logs: Sequence[Dialogue], key: str) -> PolicyLogProbs | None:
    """A fresh turn of the current policy wherever the logged one spoke, under both; None where no log has one.

    Args:
        key: seeds the draws.
    """
    points = [
        (log, index, ordinal)
        for log in logs
        for ordinal, index in enumerate((i for i, t in enumerate(log.turns) if i and t.side is Side.POLICY), start=1)
    ]
    histories = [(log.scenario, log.turns[:index]) for log, index, _ in points]
    drawn = run_to_end(parts.collector.next_turns(parts.policy, Side.POLICY, histories, 1, key))
    said = [
        (log.id, ordinal, view)
        for (log, _, ordinal), own in zip(points, drawn, strict=True)
        for view in (side_view.sequence() for _, side_view in own)
        if view.mask.any()
    ]
    if not said:
        return None
    views, temperature = [view for _, _, view in said], parts.config.policy.sampling.temperature
    now, then = parts.learner.log_probs(POLICY, views, temperature), parts.score_at_start(views, temperature)

    def whole(found: Sequence[NDArray[np.float32]]) -> list[float]:
        return [float(values[v.mask].sum(dtype=np.float64)) for values, v in zip(found, views, strict=True)]

    return PolicyLogProbs(
        logged=whole(then), policy=whole(now), turn=[ordinal for _, ordinal, _ in said],
        dialogue=[name for name, _, _ in said], drawn_from="policy",
    )  # fmt: skip
