"""Aligning the running simulator with human turns: which turns, with which weights, from which base.

Every alignment restarts from the uncalibrated simulator: going on from the last one with the same logs would
only overfit them.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from calibrated_rl.algorithms.parts import POLICY, SIMULATOR, START, ArmRecord, Parts
from calibrated_rl.calibration.density_ratio import history_weights
from calibrated_rl.calibration.sft import fine_tune, log_samples, some_of
from calibrated_rl.dialogue import Dialogue, Side, Split
from calibrated_rl.learner.sample import Sample
from calibrated_rl.tokens import view_of


def align(
    parts: Parts, record: ArmRecord, samples: Sequence[Sample], monitor: Sequence[Sample], folder: Path
) -> None:
    """Fit the uncalibrated simulator to ``samples``, stop on ``monitor``, keep it in ``folder``, serve it."""
    config = parts.config.calibration
    shutil.rmtree(folder, ignore_errors=True)
    result = fine_tune(
        parts.learner, SIMULATOR, parts.uncalibrated_folder, samples, monitor, config.sft, folder, record.seed,
        parts.progress("calibration"),
    )  # fmt: skip
    (folder / "fit.json").write_text(json.dumps(result))
    record.log(record.updates, {"simulator_monitor_nll": result["nll_after"]})
    parts.simulator.publish(parts.learner.weights(SIMULATOR), parts.simulator.version + 1)


def align_before_training(parts: Parts, record: ArmRecord) -> Path:
    """Align with the calibration logs as they are; done once a run and shared by all arms that need it."""
    folder = parts.folder / "models" / "calibrated"
    if (folder / "fit.json").is_file():
        parts.use_simulator(folder)
    else:
        samples = log_samples(parts.human_logs(Split.CALIBRATION), Side.USER, parts.simulator_chat)
        monitor = log_samples(parts.human_logs(Split.MONITOR), Side.USER, parts.simulator_chat)
        most = parts.config.calibration.sft.most_dialogues
        align(parts, record, some_of(samples, most, record.seed), monitor, folder)
    return folder


def align_again(parts: Parts, record: ArmRecord, extra: Sequence[Sample] = ()) -> Path:
    """Align while the policy moves: logged human turns weighted by how often the *current* policy would reach
    their histories, and ``extra`` human turns as they are. The monitor's turns are weighted in the same way."""
    config = parts.config.calibration
    most, seed = config.sft.most_dialogues, record.seed * 1000 + record.updates
    if not parts.uses_reference:
        parts.learner.load(START, parts.start_folder, trainable=False)
    samples, share = weighted_samples(parts, some_of(answered(parts, Split.CALIBRATION), most, seed))
    monitored = answered(parts, Split.MONITOR)
    monitor, _ = weighted_samples(parts, monitored[: config.sft.most_monitored or len(monitored)])
    if not parts.uses_reference:
        parts.learner.unload(START)
    record.log(record.updates, {"calibration_effective_share": share, "extra_human_turns": float(len(extra))})
    folder = parts.folder / "models" / f"{record.arm}-{record.seed}-{record.updates}"
    align(parts, record, [*samples, *extra], monitor, folder)
    return folder


def answered(parts: Parts, split: Split) -> list[Dialogue]:
    """Logs in which both sides have spoken."""
    return [
        log
        for log in parts.human_logs(split)
        if log.user_turn_indices() and any(turn.side is Side.POLICY for turn in log.turns[1:])
    ]


def weighted_samples(parts: Parts, logs: Sequence[Dialogue]) -> tuple[list[Sample], float]:
    """Human turns of ``logs`` with density-ratio weights, and the effective share of them."""
    samples = log_samples(logs, Side.USER, parts.simulator_chat)
    views = [sample.tokens for sample in log_samples(logs, Side.POLICY, parts.policy_chat)]
    weights, share = history_weights(
        views,
        parts.learner.log_probs(POLICY, views),
        parts.learner.log_probs(START, views),
        [sample.tokens for sample in samples],
        parts.config.calibration.ratio_clip,
    )
    return [Sample(tokens=s.tokens, token_weights=w) for s, w in zip(samples, weights, strict=True)], share


def ask_people(parts: Parts, dialogues: Sequence[Dialogue], count: int, seed: int) -> list[Sample]:
    """Replies of people of the training population on histories that the current policy has produced.

    Args:
        dialogues: of the latest update; their opening turn is nothing new and is not asked for.
        count: replies, one a sample; only the reply carries loss.
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
        view = view_of(parts.simulator_chat, dialogue.scenario, Side.USER, history).without_mask()
        view.speak_text(reply)
        samples.append(Sample(tokens=view.sequence()))
    return samples


def more_logs(parts: Parts) -> Iterator[Sample]:
    """Logged human turns of the reserve, one a sample, as ``ask_people`` gives them."""
    for log in parts.reserve:
        for index in log.user_turn_indices()[1:]:
            view = view_of(parts.simulator_chat, log.scenario, Side.USER, log.turns[:index]).without_mask()
            view.speak_text(log.turns[index].text)
            yield Sample(tokens=view.sequence())
