"""Measures a few updates of an arm with all its parts, where no run has done so yet."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from calibrated_rl.config.arms import find_arm
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.run.layout import POLICIES
from calibrated_rl.storage.files import write_json
from calibrated_rl.training.training_run import TrainingRun


def probe_config(config: RunConfig, arm: str, updates: int) -> RunConfig:
    """``config``, cut down to ``updates`` updates of one arm, in a folder of its own. Checkpoints and measurements of
    shift come as often as they do in the run itself, if so many updates see any."""
    training = replace(config.training, updates=updates, checkpoint_store="")
    return replace(
        config, name=f"{config.name}-probe-{arm}", arms=[arm], control_arms=[], variants={}, training=training
    )


def probe(run: TrainingRun, arm: str) -> Path:
    """Train ``arm`` with its first seed as the run's configuration says; it is not evaluated.

    Returns:
        the run folder, with what ``read_measured`` reads.
    """
    folder, seed = run.inputs.folder, run.inputs.config.seeds[0]
    trained = find_arm(arm)().train(run, seed)
    seconds = trained.seconds
    run.cluster.learner.save(POLICY, folder / POLICIES / f"{arm}-{seed}")
    trained.close()
    result: dict[str, Any] = {
        "arm": arm, "seed": seed, "seconds": seconds, "updates": trained.updates, "metrics": trained.metrics
    }  # fmt: skip
    write_json(folder / "arms" / f"{arm}-{seed}.json", result)
    return folder
