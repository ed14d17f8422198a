"""What a side experiment reuses from the run that it belongs to, because its settings do not change it.

Models, the simulator's measurement and whole arms depend on some of the settings; where all of those are equal,
computing them again would give the same result (in deterministic mode to the last digit) and cost minutes each.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from calibrated_rl.config.arms import find_arms
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.run.layout import POLICIES
from calibrated_rl.run.saved_run import changed_settings

HUMAN_DATA = ("task", "human", "logs", "learner", "calibration.reserve")
START = (*HUMAN_DATA, "date", "policy.model", "policy.tiny", "policy.chat_template", "policy.warm_start")
UNCALIBRATED = (
    *HUMAN_DATA,
    "date",
    "endpoints",
    "simulator.model",
    "simulator.tiny",
    "simulator.chat_template",
    "simulator.warm_start",
    "pretraining",
)
CALIBRATED = (*UNCALIBRATED, "calibration")
MEASURED = (
    *CALIBRATED,
    "policy",
    "simulator",
    "deterministic",
    "evaluation.logs",
    "evaluation.profile",
    "health.detectors",
)

ARTIFACTS: Sequence[tuple[tuple[str, ...], str, tuple[str, ...]]] = (
    (START, "models/start/fit.json", ("models/policy_base", "models/start")),
    (UNCALIBRATED, "models/uncalibrated/fit.json", ("models/simulator_base", "models/uncalibrated")),
    (CALIBRATED, "models/calibrated/fit.json", ("models/calibrated",)),
    (MEASURED, "simulator.json", ("simulator.json",)),
)
"""Settings that decide, by their beginnings; the file that is written last; what is taken over."""

NOT_OF_AN_ARM = ("name", "label", "report.", "arms", "seeds", "control_", "variants")
"""Settings that say which arms there are and what is shown of them, and nothing of how one is trained and evaluated."""


def take_over(source: Path, source_config: RunConfig, folder: Path, config: RunConfig) -> list[str]:
    """Copy into ``folder``, a run with the settings ``config``, what the run in ``source`` has made and this run would
    make again; returns what that was. What ``folder`` already contains stays.

    Args:
        source_config: the settings of ``source``.
    """
    changed = changed_settings(source_config, config)
    inherited = []
    for settings, witness, paths in ARTIFACTS:
        if any(key.startswith(settings) for key in changed) or not (source / witness).is_file():
            continue
        if not (folder / witness).is_file():
            for path in paths:
                _copy(source / path, folder / path)
            inherited.append(paths[-1])
    relevant = [key for key in changed if not key.startswith(NOT_OF_AN_ARM)]
    if all(key.startswith("calibration.") and key != "calibration.reserve" for key in relevant):
        for arm in find_arms(config.arms):
            inherited += _arms(source, folder, arm.name, config.seeds) if arm.calibrates == "never" else []
    return inherited


def _arms(source: Path, folder: Path, arm: str, seeds: Sequence[int]) -> list[str]:
    """Take over one arm, which met no calibrated simulator, with each seed that is there."""
    inherited = []
    for name in (f"{arm}-{seed}" for seed in seeds):
        result = f"arms/{name}.json"
        if (source / result).is_file() and not (folder / result).is_file():
            # The result last: where it is, the arm counts as done.
            for path in (f"{POLICIES}/{name}", f"replay/{name}", f"tensorboard/{name}", result):
                _copy(source / path, folder / path)
            inherited.append(name)
    return inherited


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copy(source, target)
