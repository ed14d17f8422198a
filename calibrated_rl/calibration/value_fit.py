"""Fits a value head, and the model below it, to returns: least squares, with early stopping on the monitor split."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibrated_rl.calibration.sft import SFTConfig, keep_best
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample

VALUE_LOSS = "calibrated_rl.learner.losses.value:ValueRegression"


def fit_value_head(
    learner: LearnerGroup, slot: str, base: Path, train: Sequence[Sample], monitor: Sequence[Sample], config: SFTConfig,
    folder: Path, seed: int, progress: Callable[[int, int], None] = lambda steps, all_steps: None,
) -> dict[str, float]:  # fmt: skip
    """Restart ``slot`` from ``base`` with a new value head, fit both, and leave the best epoch in the slot and in
    ``folder``.

    Args:
        train: samples with targets, such as are near 0 on average: a new head predicts 0.

    Returns:
        Mean squared error on ``monitor`` before and after (``error_before``, ``error_after``), and ``epochs``.
    """
    monitor = monitor[: config.most_monitored or len(monitor)]
    tokens = [sample.tokens for sample in monitor]
    targets = np.concatenate([sample.targets for sample in monitor if sample.targets is not None])
    masks = np.concatenate([sequence.mask for sequence in tokens])

    def error() -> float:
        predicted = np.concatenate(learner.values(slot, tokens))
        return float(((predicted[masks] - targets[masks]) ** 2).mean(dtype=np.float64))

    before, after, epochs = keep_best(
        learner, slot, base, train, config, folder, seed, progress, loss=VALUE_LOSS, error=error, value_head=True,
    )  # fmt: skip
    return {"error_before": before, "error_after": after, "epochs": float(epochs)}
