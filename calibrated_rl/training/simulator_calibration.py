"""Aligning the simulator that a run serves, and collecting human turns for it during training.

The calibration method decides how a simulator is aligned (``calibrated_rl/calibration/``, one file a method).
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from calibrated_rl.calibration.base import CalibrationInputs, ExtraTurn
from calibrated_rl.calibration.density_ratio import LOGS
from calibrated_rl.calibration.ensemble import mean_disagreement
from calibrated_rl.calibration.replies import HumanReply, SampledReply, SampleReplies, human_tokens
from calibrated_rl.calibration.trigger import AlignmentSchedule
from calibrated_rl.calibration.weighted import answered
from calibrated_rl.chat.tokens import SideView, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.storage.files import write_json
from calibrated_rl.training.quota import Members
from calibrated_rl.training.run_parts import RunParts
from calibrated_rl.training.shift_watch import ShiftWatch
from calibrated_rl.training.timers import UpdateTimers

logger = logging.getLogger(__name__)


class CalibratedArm(Protocol):
    """What the calibration needs of the arm whose simulator it aligns."""

    name: str
    seed: int
    updates: int
    """Done so far."""
    shift: ShiftWatch
    timers: UpdateTimers

    def log(self, values: dict[str, float]) -> None:
        """Log metrics of the current update."""
        ...


class SimulatorCalibration:
    """Aligns the simulator of one arm."""

    def __init__(self, run: RunParts, arm: CalibratedArm) -> None:
        self._run, self._arm = run, arm
        config = run.inputs.config
        self.schedule = AlignmentSchedule(config.calibration.every, config.calibration.trigger)
        """When it is aligned again."""

    def before_training(self, *, again: bool = False) -> None:
        """Align with the calibration logs as they are; done once a run and shared by all arms that need it. An arm that
        resumes has its simulator already.

        Args:
            again: the arm will align again during training (``due``).
        """
        if self._arm.updates:
            return
        if again:
            # First: clones of the logged policy, if it takes some, are fitted in the simulator's place in the learner.
            self.due()
        folder = self._run.inputs.folder / "models" / "calibrated"
        if (folder / "fit.json").is_file():
            self._run.simulator.load(folder)
        else:
            self.align(folder)

    def realign(self, extra: Sequence[ExtraTurn] = ()) -> None:
        """Align for the policy as it is now, with ``extra`` human turns beside the logs."""
        arm = self._arm
        arm.log({"extra_human_turns": float(len(extra))})
        self.align(self._run.inputs.folder / "models" / f"{arm.name}-{arm.seed}-{arm.updates}", extra)

    def align(self, folder: Path, extra: Sequence[ExtraTurn] = ()) -> dict[str, float]:
        """Align for the policy as it is now, keep the simulator in ``folder``, serve it; the method's metrics."""
        simulator = self._run.simulator
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        # The aligned simulator gets the next version whatever the method sampled meanwhile, so that what dialogues
        # record of it does not depend on who aligned it. Samples have later versions, and are not kept.
        version = simulator.pool.version + 1
        metrics = self._run.inputs.calibration.align(self._inputs(folder, extra))
        write_json(folder / "fit.json", metrics)
        simulator.serve(folder, version)
        self._arm.log(metrics | {"seconds_aligning": time.monotonic() - began})
        return metrics

    def due(self) -> bool:
        """Whether the simulator is to be aligned before the next update, by ``calibration.every`` or by its trigger;
        logs why. Where that depends on a measurement of shift, it is waited for."""
        arm, schedule, update = self._arm, self.schedule, self._arm.updates
        if schedule.trigger.shift != "never" and not schedule.exhausted:
            with arm.timers.measure("waiting_for_shift"):
                for record in arm.shift.records():
                    schedule.saw_shift(record["update"], *_limits(record))
        share = None
        if schedule.wants_share(update):
            share = self._run.inputs.calibration.effective_share(self._inputs(self._run.inputs.folder))
            arm.log({"effective_share": share})
        alignment = schedule.due(update, share)
        if alignment is not None:
            logger.info(f"{arm.name} (seed {arm.seed}): aligning the simulator before update {update + 1}: {alignment}")
            arm.log({f"aligned_by_{alignment.reason}": 1.0})
        return alignment is not None

    def next_change(self, *, again: bool = True) -> int | None:
        """The update before which the served simulator may change next: it may be aligned (``again``: during training,
        too), or be the turn of another member of an ensemble."""
        if self._run.simulator.members:
            return self._arm.updates + 1
        return self.schedule.next_change(self._arm.updates, self._run.inputs.config.shift.every) if again else None

    def serve_member(self) -> None:
        """Of an ensemble, serve the member whose turn it is: all dialogues of the next update meet it."""
        self._run.simulator.serve_member(self._arm.updates)

    def penalties(self, groups: Sequence[Members]) -> list[list[float]] | None:
        """Of an ensemble: how far its members disagree on the dialogues of the update, as a metric, and what that takes
        from the return of each; None: nothing is taken."""
        method, simulator, update = self._run.inputs.calibration, self._run.simulator, self._arm.updates
        if not simulator.members or not method.disagreement_every or update % method.disagreement_every:
            return None
        with self._arm.timers.measure("disagreement"):
            by_group = self._disagreements(groups)
        self._arm.log({"simulator_disagreement": float(np.mean([value for group in by_group for value in group]))})
        if not method.disagreement_penalty:
            return None
        return [[method.disagreement_penalty * value for value in group] for group in by_group]

    def _disagreements(self, groups: Sequence[Members]) -> list[list[float]]:
        """Mean over the user's turns of each dialogue. In the end the learner has the served member again."""
        run, speaker = self._run, self._run.simulator.member
        members, temperature = run.simulator.members, run.inputs.config.simulator.sampling.temperature
        views = [view for group in groups for d in group if (view := d.user_tokens) is not None]
        assert len(views) == sum(map(len, groups)), "the collector keeps what both sides sampled"
        log_probs = {}
        for number in (*(n for n in range(len(members)) if n != speaker), speaker):
            run.simulator.load_in_learner(members[number])
            log_probs[number] = run.cluster.learner.log_probs(SIMULATOR, views, temperature)
        values = iter(
            mean_disagreement(view, [log_probs[k][n] for k in range(len(members))], speaker)
            for n, view in enumerate(views)
        )
        return [[next(values) for _ in group] for group in groups]

    @property
    def human_turns(self) -> int:
        """Replies of humans in the measurements of shift that decided when the simulator was aligned."""
        records = self._arm.shift.records() if self.schedule.trigger.shift != "never" else []
        return sum(record["human_turns"] for record in records if record["update"] <= self.schedule.state.seen)

    def _inputs(self, folder: Path, extra: Sequence[ExtraTurn] = ()) -> CalibrationInputs:
        return calibration_inputs(self._run, self._arm.updates, self._arm.seed, folder, extra)


def calibration_inputs(
    run: RunParts, update: int, seed: int, folder: Path, extra: Sequence[ExtraTurn] = ()
) -> CalibrationInputs:
    """The inputs of the run's calibration method, for the policy that the learner has as ``POLICY``; as of
    ``CalibrationInputs``."""
    inputs = run.inputs
    return CalibrationInputs(
        learner=run.cluster.learner, log_probs_at_start=run.start.log_probs,
        log_probs_cross_fitted=run.start.cross_fitted_log_probs,
        temperature=inputs.config.policy.sampling.temperature, sample_replies=_sampler(run, update, seed),
        simulator_temperature=inputs.config.simulator.sampling.temperature, base=run.simulator.uncalibrated,
        logs=inputs.human_logs(Split.CALIBRATION), monitor=inputs.human_logs(Split.MONITOR), extra=extra,
        policy_chat=run.models.policy.chat, simulator_chat=run.models.simulator.chat,
        sft=inputs.config.calibration.sft, update=update, seed=seed, folder=folder,
        progress=inputs.progress("calibration"),
    )  # fmt: skip


def _sampler(run: RunParts, update: int, seed: int) -> SampleReplies:
    """Replies of the learner's simulator, on the simulator's replicas. What breaks is on no arm's account: who aligns
    depends on where a run was stopped."""
    cluster, config = run.cluster, run.inputs.config
    served = cluster.simulator.version
    collector = Collector(run.inputs.task, cluster.policy, config.policy.sampling, config.simulator.sampling)

    def sample_replies(replies: Sequence[HumanReply], count: int, draw: int) -> list[list[SampledReply]]:
        pool = cluster.simulator
        pool.publish(cluster.learner.weight_update(SIMULATOR, max(pool.version, served + 1) + 1))
        histories = [(reply.log.scenario, reply.history) for reply in replies]
        key = f"calibration/{seed}-{update}-{draw}"
        draws = run_to_end(collector.next_turns(pool, Side.USER, histories, count, key, kind="calibration"))
        return [
            [SampledReply(text=turn.text, tokens=view.sequence()) for turn, view in of_history] for of_history in draws
        ]

    return sample_replies


def _limits(record: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """The 95 % interval of the simulator-induced shift that the classifier on words found, and the upper limit of its
    null band; None for what the measurement has not."""
    shift, band = record["simulator_estimated"], record["null_band"]
    low, high = (None, None) if shift is None else (shift["low"], shift["high"])
    return low, high, None if band is None else band[1]


def ask_humans(
    inputs: RunInputs, models: BaseModels, dialogues: Sequence[Dialogue], count: int, seed: int
) -> list[ExtraTurn]:
    """Replies of humans of the training population on histories that the current policy has produced.

    Args:
        dialogues: of the latest update; their opening turn is nothing new and is not requested.
        count: replies; of each only the reply carries loss.
    """
    assert inputs.human is not None, "the config check admits this only with a scripted human"
    points = [(d, index) for d in dialogues for index in d.user_turn_indices()[1:]]
    random = np.random.default_rng(seed)
    if len(points) < count:
        logger.warning(
            f"the latest update offers only {len(points)} of the {count} histories that humans are to answer"
        )
    samples = []
    for number in random.permutation(len(points))[:count]:
        dialogue, index = points[int(number)]
        reply = inputs.human.sample(dialogue.scenario, dialogue.turns[:index], seed + int(number))
        samples.append(answered_turn(models, dialogue, index, reply))
    return samples


def answered_turn(models: BaseModels, dialogue: Dialogue, index: int, reply: str) -> ExtraTurn:
    """A human's ``reply`` in the place of turn ``index`` of a dialogue that the policy had with a simulator; of the
    dialogue only the reply carries loss."""
    policy_tokens, user_tokens = dialogue.policy_tokens, dialogue.user_tokens
    assert policy_tokens is not None and user_tokens is not None, "the collector keeps what both sides sampled"
    # Earlier turns of the simulator keep the tokens that it sampled (contract 1), with its thoughts.
    view = SideView(models.simulator.chat, dialogue.scenario, Side.USER)
    view = view.resume_at(user_tokens, index).without_mask()
    view.speak_text(reply)
    return ExtraTurn(
        sample=Sample(tokens=view.sequence(), name=dialogue.id), source=f"update {dialogue.update}",
        policy=policy_tokens, spoken=policy_tokens.logprobs,
    )  # fmt: skip


def more_logs(inputs: RunInputs, models: BaseModels) -> Iterator[ExtraTurn]:
    """Logged human turns of the reserve, one by one, as ``ask_humans`` gives them."""
    for log in answered(inputs.reserve):
        policy = view_of(models.policy.chat, log.scenario, Side.POLICY, log.turns).sequence()
        for index in log.user_turn_indices()[1:]:
            sample = Sample(tokens=human_tokens(models.simulator.chat, HumanReply(log=log, index=index)), name=log.id)
            yield ExtraTurn(sample=sample, source=LOGS, policy=policy, log=log)
