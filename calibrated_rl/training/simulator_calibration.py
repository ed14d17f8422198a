"""Aligning the simulator that a run serves, and collecting human turns for it during training.

The calibration method decides how a simulator is aligned (``calibrated_rl/calibration/``, one file a method).
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibrated_rl.calibration.base import CalibrationInputs, ExtraTurn
from calibrated_rl.calibration.density_ratio import LOGS
from calibrated_rl.calibration.replies import HumanReply, SampledReply, SampleReplies, human_tokens
from calibrated_rl.calibration.weighted import answered
from calibrated_rl.chat.tokens import SideView, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.runtime.event_loop import run_to_end
from calibrated_rl.storage.files import write_json

if TYPE_CHECKING:
    from calibrated_rl.training.arm_run import ArmRun

logger = logging.getLogger(__name__)


class SimulatorCalibration:
    """Aligns the simulator of one arm."""

    def __init__(self, arm: "ArmRun") -> None:
        self._arm, self._run = arm, arm.run

    def before_training(self) -> None:
        """Align with the calibration logs as they are; done once a run and shared by all arms that need it. An arm that
        resumes has its simulator already."""
        if self._arm.updates:
            return
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
        arm, run, inputs = self._arm, self._run, self._run.inputs
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        # What is sampled meanwhile has later versions, and is not kept: the aligned simulator gets the same version
        # whatever the method sampled, so that what dialogues record of it does not depend on who aligned it.
        version = run.simulator.pool.version + 1
        metrics = inputs.calibration.align(
            CalibrationInputs(
                learner=run.cluster.learner, log_probs_at_start=run.start.log_probs,
                log_probs_cross_fitted=run.start.cross_fitted_log_probs,
                temperature=inputs.config.policy.sampling.temperature, sample_replies=self._sampler(),
                simulator_temperature=inputs.config.simulator.sampling.temperature, base=run.simulator.uncalibrated,
                logs=inputs.human_logs(Split.CALIBRATION), monitor=inputs.human_logs(Split.MONITOR), extra=extra,
                policy_chat=run.models.policy.chat, simulator_chat=run.models.simulator.chat,
                sft=inputs.config.calibration.sft, update=arm.updates, seed=arm.seed, folder=folder,
                progress=inputs.progress("calibration"),
            )
        )  # fmt: skip
        write_json(folder / "fit.json", metrics)
        run.simulator.serve(folder, version)
        arm.log(metrics | {"seconds_aligning": time.monotonic() - began})
        return metrics

    def _sampler(self) -> SampleReplies:
        arm, cluster = self._arm, self._run.cluster

        def sample_replies(replies: Sequence[HumanReply], count: int, seed: int) -> list[list[SampledReply]]:
            pool = cluster.simulator
            pool.publish(cluster.learner.weight_update(SIMULATOR, pool.version + 1))
            histories = [(reply.log.scenario, reply.history) for reply in replies]
            key = f"calibration/{arm.seed}-{arm.updates}-{seed}"
            draws = run_to_end(cluster.collector.next_turns(pool, Side.USER, histories, count, key, kind="calibration"))
            return [
                [SampledReply(text=turn.text, tokens=view.sequence()) for turn, view in of_history]
                for of_history in draws
            ]

        return sample_replies


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
        history = dialogue.turns[:index]
        reply = inputs.human.sample(dialogue.scenario, history, seed + int(number))
        policy_tokens, user_tokens = dialogue.policy_tokens, dialogue.user_tokens
        assert policy_tokens is not None and user_tokens is not None, "the collector keeps what both sides sampled"
        # Earlier turns of the simulator keep the tokens that it sampled (contract 1), with its thoughts.
        view = SideView(models.simulator.chat, dialogue.scenario, Side.USER)
        view = view.resume_at(user_tokens, index).without_mask()
        view.speak_text(reply)
        samples.append(
            ExtraTurn(
                sample=Sample(tokens=view.sequence(), name=dialogue.id), source=f"update {dialogue.update}",
                policy=policy_tokens, spoken=policy_tokens.logprobs,
            )
        )  # fmt: skip
    return samples


def more_logs(inputs: RunInputs, models: BaseModels) -> Iterator[ExtraTurn]:
    """Logged human turns of the reserve, one by one, as ``ask_humans`` gives them."""
    for log in answered(inputs.reserve):
        policy = view_of(models.policy.chat, log.scenario, Side.POLICY, log.turns).sequence()
        for index in log.user_turn_indices()[1:]:
            sample = Sample(tokens=human_tokens(models.simulator.chat, HumanReply(log=log, index=index)), name=log.id)
            yield ExtraTurn(sample=sample, source=LOGS, policy=policy, log=log)
