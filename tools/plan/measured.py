"""Where the time of a run went, read from the metrics of its arms in ``arms/ARM-SEED.json``.

An update has three parts: rollouts, learning (with storing, drawing groups, reference log-probs), the sync of weights.
They take turns, or with ``training.max_staleness`` above 0 some of the rollouts overlap with the others. Some work is
done in some updates only, as the settings say: measuring shift, writing a checkpoint, aligning the simulator again.
Aligning has no metric of its own: it is the additional time that the learner waited for its dialogues in the updates
that begin with it, compared with the median of the others.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from calibrated_rl.config.arms import find_arm
from calibrated_rl.config.load import load_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.models.shape import parameter_bytes
from calibrated_rl.run.arm_results import read_result
from calibrated_rl.run.layout import POLICIES, refuse_old_layout
from calibrated_rl.run.saved_run import config_file

SIDES = ("policy", "simulator")
"""Arms that align their simulator while they train."""
WARM_UP = 1
"""An arm's first updates, which load and warm up its parts, are not used."""
MIN_UPDATES = 3
"""Minimum number of updates to estimate their spread."""
_METRICS = (
    "seconds_rollout", "seconds_learning", "seconds_weight_sync", "optimizer_steps",
    *(f"replicas_{side}" for side in SIDES),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateMeasured:
    """One update; all times in seconds."""

    seed: int
    update: int
    rollout: float
    learning: float
    sync: float
    hidden: float
    """The part of the rollouts that the learner did not wait for, since it overlapped with learning and sync."""
    optimizer_steps: float
    replicas: Mapping[str, int]
    """In service, by side."""
    in_flight: Mapping[str, float]
    """Turns in flight on all replicas of a side, on average while rollouts ran; empty: the run did not record it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measurements of one arm of a run, its seeds together."""

    source: str
    arm: str
    config: RunConfig
    """The run's config."""
    updates: tuple[UpdateMeasured, ...]
    """Without the first ``WARM_UP`` of each seed."""
    occasions: Mapping[str, float]
    """Mean seconds of ``measuring``, ``checkpoint`` and ``aligning`` each time; only those that occurred."""
    weight_bytes: int
    """Of the policy as it is saved."""

    def seconds_an_update(self) -> dict[str, float]:
        """Seconds an update by part, of the rollouts only the time that the learner waited; occasional work is spread
        over all updates."""
        count = len(self.updates)
        core = {
            "rollout": sum(u.rollout - u.hidden for u in self.updates) / count,
            "learning": sum(u.learning for u in self.updates) / count,
            "sync": sum(u.sync for u in self.updates) / count,
        }
        times = occasions_in(self.config, self.arm)
        return core | {name: s * times[name] / self.config.training.updates for name, s in self.occasions.items()}


def occasions_in(config: RunConfig, arm: str) -> dict[str, int]:
    """How often an arm of this config measures shift, writes a checkpoint, and aligns its simulator again by the clock;
    how often a trigger does is not known before."""
    updates, training = config.training.updates, config.training
    every = config.calibration.every if find_arm(arm).calibrates == "again" else 0
    return {
        "measuring": updates // config.shift.every + 1 if config.shift.every else 0,
        "checkpoint": (updates - 1) // training.checkpoint_every if training.checkpoint_every else 0,
        "aligning": (updates - 1) // every if every else 0,
    }


def trained_arms(run: Path) -> list[str]:
    """Arms of the run in ``run`` whose updates were measured.

    Raises:
        UserError: it is no run folder, or one of its files is broken.
    """
    config_file(run)
    refuse_old_layout(run)
    return sorted({_arm(file) for file in _files(run) if any(_values(file).values())})


def read_measured(run: Path, arm: str, first: int | None = None) -> Measured:
    """The measurements of ``arm`` in the run folder ``run``.

    Args:
        first: number of first updates of each seed to use; None: all.

    Raises:
        UserError: it is no run folder, it has no result of the arm, too few updates, or a file is broken; names it.
    """
    config = load_config(config_file(run), saved=True)
    refuse_old_layout(run)
    files = [file for file in _files(run) if _arm(file) == arm]
    if not files:
        raise UserError(f"{run} has no finished arm '{arm}'; there are: {', '.join(trained_arms(run)) or 'none'}")
    updates: list[UpdateMeasured] = []
    occasions: defaultdict[str, list[float]] = defaultdict(list)
    for file in files:
        metrics = {update: values for update, values in _values(file).items() if first is None or update < first}
        _add_seed(metrics, config, arm, file, updates, occasions)
    if len(updates) < MIN_UPDATES:
        raise UserError(
            f"{run}: {len(updates)} updates of '{arm}' can be used, at least {MIN_UPDATES} are needed (the first "
            f"{WARM_UP} of each seed warms up)"
        )
    return Measured(
        source=str(run), arm=arm, config=config, updates=tuple(updates),
        occasions={name: sum(values) / len(values) for name, values in occasions.items()},
        weight_bytes=parameter_bytes(run / POLICIES / files[0].stem),
    )  # fmt: skip


def _add_seed(
    metrics_by_update: Mapping[int, Mapping[str, float]], config: RunConfig, arm: str, file: Path,
    updates: list[UpdateMeasured], occasions: dict[str, list[float]],
) -> None:  # fmt: skip
    every = config.calibration.every if find_arm(arm).calibrates == "again" else 0
    complete = {u: metrics for u, metrics in sorted(metrics_by_update.items()) if "seconds_rollout" in metrics}
    aligned = {u for u, metrics in complete.items() if (every and u % every == 0) or "seconds_aligning" in metrics}
    usual = {u: metrics for u, metrics in complete.items() if u >= WARM_UP and u not in aligned}
    for update, metrics in metrics_by_update.items():
        if "seconds_measuring" in metrics:
            occasions["measuring"].append(metrics["seconds_measuring"])
        if "seconds_checkpoint" in metrics:
            occasions["checkpoint"].append(
                metrics["seconds_checkpoint"] + metrics.get("seconds_waiting_for_shift", 0.0)
            )
        if update and update in aligned and usual:
            usual_wait = median(_waited(usual_metrics) for usual_metrics in usual.values())
            occasions["aligning"].append(max(0.0, _waited(metrics) - usual_wait))
    for update, metrics in usual.items():
        if missing := [name for name in _METRICS if name not in metrics]:
            raise UserError(f"{file}: update {update} has no metric '{missing[0]}'")
        if metrics["seconds_rollout"] <= 0 or min(metrics[f"replicas_{side}"] for side in SIDES) < 1:
            raise UserError(f"{file}: update {update} took no time in rollouts, or had no replica")
        in_turns = {side: metrics[key] for side in SIDES if (key := f"seconds_in_turns_{side}") in metrics}
        updates.append(
            UpdateMeasured(
                seed=int(file.stem.rpartition("-")[2]), update=update, rollout=metrics["seconds_rollout"],
                learning=metrics["seconds_learning"], sync=metrics["seconds_weight_sync"],
                hidden=max(0.0, metrics["seconds_rollout"] - _waited(metrics)),
                optimizer_steps=metrics["optimizer_steps"],
                replicas={side: round(metrics[f"replicas_{side}"]) for side in SIDES},
                in_flight={side: seconds / metrics["seconds_rollout"] for side, seconds in in_turns.items()},
            )
        )  # fmt: skip


def _waited(update: Mapping[str, float]) -> float:
    """Seconds that the learner waited for its dialogues; where rollouts and learning take turns, their full
    duration."""
    return update.get("seconds_waiting", update["seconds_rollout"])


def _files(run: Path) -> list[Path]:
    return sorted(file for file in (run / "arms").glob("*.json") if re.fullmatch(r"\w+-\d+", file.stem))


def _arm(file: Path) -> str:
    return file.stem.rpartition("-")[0]


def _values(file: Path) -> dict[int, dict[str, float]]:
    """The metrics of an arm's file by update.

    Raises:
        UserError: it is not such a file.
    """
    metrics_by_update: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for row in read_result(file)["metrics"]:
        update, name, value = row["update"], row["name"], row["value"]
        if name.startswith(("seconds_", "replicas_")) and not (math.isfinite(value) and value >= 0):
            raise UserError(f"{file}: metric '{name}' of update {update} is {value}")
        metrics_by_update[update][name] = float(value)
    return dict(metrics_by_update)
