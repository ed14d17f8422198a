"""Aligns the simulator by one method after the other, and measures how far each is from the human."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrated_rl.calibration.base import CalibrationMethod
from calibrated_rl.calibration.checked import build_method
from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.load import settings_of_pairs
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.replies import exact_replies
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.shift.in_run import ExactReplies, bound_of
from calibrated_rl.shift.stakes import Stakes, stakes_of
from calibrated_rl.training.arm_run import ArmRun
from calibrated_rl.training.training_run import TrainingRun, started

Result = dict[str, Any]


def method_of(name: str) -> CalibrationMethod | None:
    """The method that a result's name says: an import path, settings, and a split in brackets; None for ``none``, the
    uncalibrated simulator.

    Raises:
        UserError: there is no such method, or it does not take these settings.
    """
    path, *pairs, _ = name.split()
    if path == "none":
        return None
    location = f"--method {path}"
    method = build_method(path, settings_of_pairs(pairs, location).values, location)
    if getattr(method, "disagreement_every", 0):
        raise UserError(f"{location} leaves several simulators, and one is measured")
    return method


class Alignments:
    """The running system of a config, in which simulators are aligned."""

    def __init__(self, run: TrainingRun, arm: ArmRun, split: Split) -> None:
        self._run, self._arm, self._split, self._number = run, arm, split, 0
        logs = run.inputs.logs[split]
        stakes = stakes_of(run.inputs.task, logs, run.inputs.judge)
        if not isinstance(stakes, Stakes):
            raise UserError(stakes or f"the task {run.inputs.task.name} has no reward_range(), which weighs the shifts")
        self._stakes = stakes
        self._logs = [log for log in logs if log.user_turn_indices()]

    @classmethod
    @contextmanager
    def started(cls, config: RunConfig, folder: Path, progress: Progress, split: Split) -> "Iterator[Alignments]":
        """While the system runs."""
        with started(config, folder, progress) as run:
            yield cls(run, run.begin("align", config.seeds[0]), split)

    def measured(self, name: str) -> Result:
        """The result ``name``; see ``method_of``."""
        method = method_of(name)
        began, metrics = time.monotonic(), dict[str, float]()
        if method is None:
            self._run.simulator.load(self._run.simulator.uncalibrated)
        else:
            self._run.inputs = replace(self._run.inputs, calibration=method)
            self._number += 1
            folder = self._run.inputs.folder / "models" / f"aligned-{self._split}-{self._number}"
            metrics = self._arm.calibration.align(folder)
        seconds = time.monotonic() - began
        return self._exact() | {"seconds": seconds, "metrics": metrics} | self._monitor()

    def _exact(self) -> Result:
        inputs, learner = self._run.inputs, self._run.cluster.learner
        sampling = inputs.config.simulator.sampling
        views = [sample.tokens for sample in log_samples(self._logs, Side.USER, self._run.models.simulator.chat)]
        scores = learner.log_probs(SIMULATOR, views, sampling.temperature)
        assert inputs.human is not None, "refused before the start"
        replies = exact_replies(inputs.human, self._logs, views, scores, sampling.max_turn_tokens)
        exact = replies.shift()
        return {
            "bound": bound_of(replies, self._stakes),
            "tv": dict(exact["tv"].as_dict()), "kl": dict(exact["kl"].as_dict()),
            "by_dialogue": weighted_sums(replies, self._stakes),
        }  # fmt: skip

    def _monitor(self) -> Result:
        samples = log_samples(self._run.inputs.logs[Split.MONITOR], Side.USER, self._run.models.simulator.chat)
        return {"monitor_nll": self._run.cluster.learner.evaluate(SIMULATOR, samples)["nll"]}


def weighted_sums(replies: ExactReplies, stakes: Stakes) -> dict[str, float]:
    """The sum over each dialogue's turns of total variation times stake, whose mean is ``bound_of``."""
    log_ratio = np.asarray(replies.simulator, np.float64) - np.asarray(replies.human, np.float64)
    at_stake = stakes.of(np.asarray(replies.turn)) * -np.expm1(np.minimum(log_ratio, 0.0))
    sums = dict.fromkeys(replies.dialogue, 0.0)
    for dialogue, value in zip(replies.dialogue, at_stake.tolist(), strict=True):
        sums[dialogue] += value
    return sums
