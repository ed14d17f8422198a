"""Aligning the simulator that a run serves, and the human turns that are gathered for it during training.

How a simulator is aligned is the method's affair (``calibrated_rl/calibration/``, one file a method).
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from calibrated_rl.calibration.base import CalibrationInputs, ExtraTurn
from calibrated_rl.calibration.density_ratio import LOGS
from calibrated_rl.calibration.weighted import answered
from calibrated_rl.chat.tokens import SideView, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.learner.sample import Sample
from calibrated_rl.run.parts import Parts
from calibrated_rl.storage.files import write_json
from calibrated_rl.training.arm import Arm


def align(arm: Arm, folder: Path, extra: Sequence[ExtraTurn] = ()) -> None:
    """Align the simulator for the policy as it is now, keep it in ``folder``, serve it."""
    parts = arm.parts
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    metrics = parts.calibration.align(
        CalibrationInputs(
            learner=parts.learner, log_probs_at_start=parts.log_probs_at_start,
            log_probs_cross_fitted=parts.log_probs_cross_fitted,
            temperature=parts.config.policy.sampling.temperature, base=parts.uncalibrated_folder,
            logs=parts.human_logs(Split.CALIBRATION), monitor=parts.human_logs(Split.MONITOR), extra=extra,
            policy_chat=parts.policy_chat, simulator_chat=parts.simulator_chat, sft=parts.config.calibration.sft,
            update=arm.updates, seed=arm.seed, folder=folder, progress=parts.progress("calibration"),
        )
    )  # fmt: skip
    write_json(folder / "fit.json", metrics)
    parts.serve_simulator(folder)
    arm.log(metrics | {"seconds_aligning": time.monotonic() - began})


def align_before_training(arm: Arm) -> None:
    """Align with the calibration logs as they are; done once a run and shared by all arms that need it. An arm that
    goes on has its simulator already."""
    if arm.updates:
        return
    folder = arm.parts.folder / "models" / "calibrated"
    if (folder / "fit.json").is_file():
        arm.parts.use_simulator(folder)
    else:
        align(arm, folder)


def align_again(arm: Arm, extra: Sequence[ExtraTurn] = ()) -> None:
    """Align while the policy moves, with ``extra`` human turns beside the logs."""
    arm.log({"extra_human_turns": float(len(extra))})
    align(arm, arm.parts.folder / "models" / f"{arm.name}-{arm.seed}-{arm.updates}", extra)


def ask_people(parts: Parts, dialogues: Sequence[Dialogue], count: int, seed: int) -> list[ExtraTurn]:
    """Replies of people of the training population on histories that the current policy has produced.

    Args:
        dialogues: of the latest update; their opening turn is nothing new and is not asked for.
        count: replies; of each only the reply carries loss.
    """
    assert parts.human is not None, "the config check admits this only with a scripted human"
    points = [(d, index) for d in dialogues for index in d.user_turn_indices()[1:]]
    random = np.random.default_rng(seed)
    if len(points) < count:
        parts.say(f"the latest update offers only {len(points)} of the {count} histories that people are to answer")
    samples = []
    for number in random.permutation(len(points))[:count]:
        dialogue, index = points[int(number)]
        history = dialogue.turns[:index]
        reply = parts.human.sample(dialogue.scenario, history, seed + int(number))
        own, simulators = dialogue.policy_tokens, dialogue.user_tokens
        assert own is not None and simulators is not None, "the collector keeps what both sides sampled"
        # What the simulator said before stays as it sampled it (contract 1), its thoughts among it.
        view = SideView(parts.simulator_chat, dialogue.scenario, Side.USER).back_to(simulators, index).without_mask()
        view.speak_text(reply)
        samples.append(
            ExtraTurn(
                sample=Sample(tokens=view.sequence(), name=dialogue.id), source=f"update {dialogue.update}",
                policy=own, spoken=own.logprobs,
            )
        )  # fmt: skip
    return samples


def more_logs(parts: Parts) -> Iterator[ExtraTurn]:
    """Logged human turns of the reserve, one by one, as ``ask_people`` gives them."""
    for log in answered(parts.reserve):
        policy = view_of(parts.policy_chat, log.scenario, Side.POLICY, log.turns).sequence()
        for index in log.user_turn_indices()[1:]:
            view = view_of(parts.simulator_chat, log.scenario, Side.USER, log.turns[:index]).without_mask()
            view.speak_text(log.turns[index].text)
            sample = Sample(tokens=view.sequence(), name=log.id)
            yield ExtraTurn(sample=sample, source=LOGS, policy=policy, log=log)
