"""Measuring, while an arm trains, how far its dialogues are from real ones: by source and by turn.

Before the first update and after every ``shift.every``-th one, the policy and the simulator as they are now answer on
the monitor split: the policy meets the simulator and, where humans are scripted, the humans; both simulator and
humans reply to the same histories; the policy speaks where the logged one did. Nothing of that is learned from.

Training does not wait for most of it. The policy's own turns are drawn and scored before the learner takes its step,
since they are scored with the weights that the step replaces; all dialogues run while it takes it, when the engines,
which serve these very weights until it is done, would be idle. The estimates (``shift/in_run.py``) are computed in a
process beside training and fetched when the arm is done, or when they decide whether the simulator is aligned again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.evaluation.replies import Answer, answers, exact_replies, matched_with_humans
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.rollout.users import User, UserModel
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.run.start_policy import StartPolicy
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.shift.in_run import Collected, shift_record
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.probabilities.policy_shift import PolicyLogProbs
from calibrated_rl.shift.stakes import stakes_of
from calibrated_rl.tasks.base import ScriptedHuman

TIMEOUT_S = 1800.0
OVERALL = ("policy", "simulator", "history_shift", "bound", "shift_index", "exploitation")
"""Estimates that become metrics of the update."""


class ShiftWatch:
    """The measurements of one arm."""

    def __init__(
        self, inputs: RunInputs, models: BaseModels, cluster: Cluster, start: StartPolicy, arm: str, seed: int
    ) -> None:
        self._inputs, self._models, self._cluster, self._start = inputs, models, cluster, start
        self._arm, self._seed = arm, seed
        self.done: list[dict[str, Any]] = []
        """Records from before the arm was stopped."""
        self._estimates: list[Any] = []

    def due(self, update: int, user: User | None) -> "Measurement | None":
        """The measurement before ``update``, every ``shift.every`` updates: how far are policy and ``user`` from real
        dialogues? None: none is due.

        Args:
            user: whom the arm trains with; None: nobody answers it (static context RL).
        """
        every = self._inputs.config.shift.every
        if not every or update % every or any(record["update"] == update for record in self.done):
            return None  # or it was measured before the arm was stopped
        return Measurement(self, update, user)

    def draw(self, update: int) -> PolicyLogProbs | None:
        """The policy's own turns, while the learner's weights are those that it speaks with."""
        key = f"{self._arm}/shift/policy-{self._seed}-{update}"
        return policy_log_probs(
            self._cluster, self._start, self._logs(), key, self._inputs.config.policy.sampling.temperature
        )

    def run_rollouts(self, update: int, user: User | None) -> "MeasuredDialogues":
        """All dialogues and replies. Needs the engines and the store alone."""
        return run_rollouts(
            self._cluster, self._inputs.human, self._logs(), f"{self._arm}/shift", self._seed, update, user
        )

    def estimate(self, policy: PolicyLogProbs | None, measured: "MeasuredDialogues") -> None:
        """Let the learner score human replies, and start the estimates."""
        data = collected(self._inputs, self._models, self._cluster.learner, policy, measured)
        has_band = self._estimates or any(record["null_band"] is not None for record in self.done)
        halvings = 0 if has_band else self._inputs.config.shift.null_halvings
        self._estimates.append(self._cluster.background.run(shift_record, data, halvings))

    def records(self) -> list[dict[str, Any]]:
        """All estimates in the order of the updates.

        Raises:
            PartLost: an estimate is lost, or took longer than ``TIMEOUT_S``.
        """
        self.done += self._cluster.background.fetch(self._estimates, TIMEOUT_S)
        self._estimates = []
        return self.done

    def _logs(self) -> list[Dialogue]:
        logs = [log for log in self._inputs.logs[Split.MONITOR] if log.user_turn_indices()]
        return logs[: self._inputs.config.shift.dialogues]


class Measurement:
    """One measurement, in three steps: ``draw`` before the learner's step, ``run_rollouts`` beside it, ``estimate``."""

    def __init__(self, watch: ShiftWatch, update: int, user: User | None) -> None:
        self._watch, self._update, self._user = watch, update, user
        self._policy: PolicyLogProbs | None = None
        self._measured: MeasuredDialogues | None = None

    def draw(self) -> None:
        """The policy's own turns, scored with the learner's weights."""
        self._policy = self._watch.draw(self._update)

    def run_rollouts(self) -> None:
        """Dialogues and replies, which need no learner; run once."""
        self._measured = self._measured or self._watch.run_rollouts(self._update, self._user)

    def estimate(self) -> None:
        """Start the estimates."""
        assert self._measured is not None, "its rollouts have not been run"
        self._watch.estimate(self._policy, self._measured)

    def run(self) -> None:
        """All of it at once."""
        self.draw()
        self.run_rollouts()
        self.estimate()


def overall(record: dict[str, Any]) -> dict[str, float]:
    """The estimates of one measurement over all turns, as metrics."""
    values = {f"shift/{name}": record[name]["mean"] for name in OVERALL if record[name] is not None}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class MeasuredDialogues:
    """The dialogues of one measurement; None where the arm has none of the kind."""

    update: int
    with_humans: list[Dialogue] | None
    """The policy's dialogues with scripted humans."""
    with_user: list[Dialogue] | None
    """Its dialogues with the arm's user."""
    by_simulator: bool
    """Whether that user is a simulator."""
    human_dialogues: list[Dialogue]
    """Dialogues of humans at whose histories the simulator replied, too."""
    replies: list[Answer] | None


def run_rollouts(
    cluster: Cluster, human: ScriptedHuman | None, logs: Sequence[Dialogue], name: str, seed: int, update: int,
    user: User | None,
) -> MeasuredDialogues:  # fmt: skip
    """Dialogues of the served policy on the scenarios of ``logs``, and replies of the served simulator."""

    def meet(partner: User, label: str) -> list[Dialogue]:
        groups = cluster.collector.collect(
            [log.scenario for log in logs], partner, group_size=1, arm=f"{name}/{label}", update=update, seed=seed,
            kind="evaluation",
        )  # fmt: skip
        cluster.store.append([dialogue for group in groups for dialogue in group])
        return [dialogue for group in groups for dialogue in group]

    with_humans = meet(human, "people") if human is not None else None
    with_user = None if user is None else with_humans if user is human else meet(user, "simulator")
    human_dialogues = (
        list(logs) if with_humans is None else [dialogue for dialogue in with_humans if dialogue.user_turn_indices()]
    )
    by_simulator = isinstance(user, UserModel)
    replies = (
        answers(cluster.collector, user, human_dialogues, f"{name}-{seed}-{update}")
        if isinstance(user, UserModel)
        else None
    )
    return MeasuredDialogues(
        update=update,
        with_humans=with_humans,
        with_user=with_user,
        by_simulator=by_simulator,
        human_dialogues=human_dialogues,
        replies=replies,
    )


def collected(
    inputs: RunInputs, models: BaseModels, learner: LearnerGroup, policy: PolicyLogProbs | None,
    measured: MeasuredDialogues,
) -> Collected:  # fmt: skip
    """The input of the estimates."""
    exact = None
    known = models.local_simulator is not None and not inputs.config.simulator.sampling.reshaped
    if measured.by_simulator and inputs.human is not None and known:
        views = [sample.tokens for sample in log_samples(measured.human_dialogues, Side.USER, models.simulator.chat)]
        sampling = inputs.config.simulator.sampling
        scores = learner.log_probs(SIMULATOR, views, sampling.temperature)
        exact = exact_replies(inputs.human, measured.human_dialogues, views, scores, sampling.max_turn_tokens)
    with_simulator = measured.with_user if measured.by_simulator else None
    with_humans, monitor = measured.with_humans, inputs.logs[Split.MONITOR]
    return Collected(
        update=measured.update,
        policy=policy,
        replies=None if measured.replies is None else matched_with_humans(inputs.task, measured.replies),
        exact=exact,
        histories=None if measured.with_user is None else DialogueSets(human=monitor, simulator=measured.with_user),
        with_simulator=None if with_simulator is None else returns(with_simulator),
        with_humans=None if with_humans is None else returns(with_humans),
        success_with_simulator=None if with_simulator is None else successes(with_simulator),
        success_with_humans=None if with_humans is None else successes(with_humans),
        human_turns=sum(len(d.user_turn_indices()) for d in with_humans or ()),
        stakes=stakes_of(inputs.task, [*(measured.with_humans or ()), *(measured.with_user or ())], inputs.judge),
    )


def returns(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Return of each dialogue by its scenario."""
    return {d.scenario.id: d.outcome.episode_return for d in dialogues if d.outcome is not None}


def successes(dialogues: Sequence[Dialogue]) -> dict[str, float]:
    """Whether each dialogue succeeded (1) or not (0), by its scenario."""
    return {d.scenario.id: float(d.outcome.success) for d in dialogues if d.outcome is not None}


def policy_log_probs(
    cluster: Cluster, start: StartPolicy, logs: Sequence[Dialogue], key: str, temperature: float
) -> PolicyLogProbs | None:
    """A fresh turn of the current policy wherever the logged one spoke, under both; None where no log has one.

    Args:
        key: seeds the draws.
        temperature: that at which the policy speaks.
    """
    points = [
        (log, index, ordinal)
        for log in logs
        for ordinal, index in enumerate((i for i, t in enumerate(log.turns) if i and t.side is Side.POLICY), start=1)
    ]
    histories = [(log.scenario, log.turns[:index]) for log, index, _ in points]
    draws = run_to_end(cluster.collector.next_turns(cluster.policy, Side.POLICY, histories, 1, key))
    fresh_turns = [
        (log.id, ordinal, view)
        for (log, _, ordinal), turn_draws in zip(points, draws, strict=True)
        for view in (side_view.sequence() for _, side_view in turn_draws)
        if view.mask.any()
    ]
    if not fresh_turns:
        return None
    views = [view for _, _, view in fresh_turns]
    current_logprobs, start_logprobs = (
        cluster.learner.log_probs(POLICY, views, temperature),
        start.score(views, temperature),
    )

    def turn_sums(logprobs: Sequence[NDArray[np.float32]]) -> list[float]:
        return [float(values[v.mask].sum(dtype=np.float64)) for values, v in zip(logprobs, views, strict=True)]

    return PolicyLogProbs(
        logged=turn_sums(start_logprobs), policy=turn_sums(current_logprobs),
        turn=[ordinal for _, ordinal, _ in fresh_turns],
        dialogue=[name for name, _, _ in fresh_turns], drawn_from="policy",
    )  # fmt: skip
