"""Where the time of a run went, read from the metrics that its arms left in ``arms/ARM-SEED.json``.

An update has three parts: rollouts, learning (with storing, drawing groups, reference log-probs), the sync of weights.
They take turns, or with ``training.max_staleness`` above 0 some of the rollouts goes on beside the others. Some work
comes with some updates only, on occasions that the settings name: measuring shift, keeping a checkpoint, aligning the
simulator again. Aligning has no metric of its own: it is by how much longer the learner waited for its dialogues in the
updates that begin with it than the median of the others.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from calibrated_rl.config.arms import find_arm
from calibrated_rl.config.run_config import RunConfig, load_config
from calibrated_rl.errors import UserError
from calibrated_rl.models.shape import parameter_bytes
from calibrated_rl.run.arm_results import read_result
from calibrated_rl.run.layout import POLICIES, refuse_old_layout
from calibrated_rl.run.saved_run import config_file

SIDES = ("policy", "simulator")
"""Arms that align their simulator while they train."""
WARM_UP = 1
"""An arm's first updates, which load and warm up what the others find there: not used."""
FEWEST = 3
"""Updates below which nothing can be said of how they spread."""
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
    """Of the rollouts, what the learner did not wait for: it went on beside learning and sync."""
    optimizer_steps: float
    replicas: Mapping[str, int]
    """In service, by side."""
    in_flight: Mapping[str, float]
    """Turns in flight on all replicas of a side, on average while rollouts ran; empty: the run did not record it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one arm of a run left, its seeds together."""

    source: str
    arm: str
    config: RunConfig
    """With which it ran."""
    updates: tuple[UpdateMeasured, ...]
    """Without the first ``WARM_UP`` of each seed."""
    occasions: Mapping[str, float]
    """Mean seconds of ``measuring``, ``checkpoint`` and ``aligning`` each time; only those that occurred."""
    weight_bytes: int
    """Of the policy as it is saved."""

    def seconds_an_update(self) -> dict[str, float]:
        """Seconds an update by part, of the rollouts what the learner waited for; what comes on occasions is spread
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
    """How often an arm of this config measures shift, keeps a checkpoint, and aligns its simulator again."""
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
    """What ``arm`` left in the run folder ``run``.

    Args:
        first: only the first so many updates of each seed; None: all.

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
        found = {update: of for update, of in _values(file).items() if first is None or update < first}
        _add_seed(found, config, arm, file, updates, occasions)
    if len(updates) < FEWEST:
        raise UserError(
            f"{run}: {len(updates)} updates of '{arm}' can be used, at least {FEWEST} are needed (the first "
            f"{WARM_UP} of each seed warms up)"
        )
    return Measured(
        source=str(run), arm=arm, config=config, updates=tuple(updates),
        occasions={name: sum(values) / len(values) for name, values in occasions.items()},
        weight_bytes=parameter_bytes(run / POLICIES / files[0].stem),
    )  # fmt: skip


def _add_seed(
    found: Mapping[int, Mapping[str, float]], config: RunConfig, arm: str, file: Path,
    updates: list[UpdateMeasured], occasions: dict[str, list[float]],
) -> None:  # fmt: skip
    every = config.calibration.every if find_arm(arm).calibrates == "again" else 0
    complete = {u: of for u, of in sorted(found.items()) if "seconds_rollout" in of}
    usual = {u: of for u, of in complete.items() if u >= WARM_UP and not (every and u % every == 0)}
    for update, of in found.items():
        if "seconds_measuring" in of:
            occasions["measuring"].append(of["seconds_measuring"])
        if "seconds_checkpoint" in of:
            occasions["checkpoint"].append(of["seconds_checkpoint"] + of.get("seconds_waiting_for_shift", 0.0))
        if every and update and update % every == 0 and update in complete and usual:
            waited = median(_waited(other) for other in usual.values())
            occasions["aligning"].append(max(0.0, _waited(of) - waited))
    for update, of in usual.items():
        if absent := [name for name in _METRICS if name not in of]:
            raise UserError(f"{file}: update {update} has no metric '{absent[0]}'")
        if of["seconds_rollout"] <= 0 or min(of[f"replicas_{side}"] for side in SIDES) < 1:
            raise UserError(f"{file}: update {update} took no time in rollouts, or had no replica")
        in_turns = {side: of[key] for side in SIDES if (key := f"seconds_in_turns_{side}") in of}
        updates.append(
            UpdateMeasured(
                seed=int(file.stem.rpartition("-")[2]), update=update, rollout=of["seconds_rollout"],
                learning=of["seconds_learning"], sync=of["seconds_weight_sync"],
                hidden=max(0.0, of["seconds_rollout"] - _waited(of)), optimizer_steps=of["optimizer_steps"],
                replicas={side: round(of[f"replicas_{side}"]) for side in SIDES},
                in_flight={side: seconds / of["seconds_rollout"] for side, seconds in in_turns.items()},
            )
        )  # fmt: skip


def _waited(update: Mapping[str, float]) -> float:
    """Seconds that the learner waited for its dialogues; where they take turns with it, as long as they took."""
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
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for row in read_result(file)["metrics"]:
        update, name, value = row["update"], row["name"], row["value"]
        if name.startswith(("seconds_", "replicas_")) and not (math.isfinite(value) and value >= 0):
            raise UserError(f"{file}: metric '{name}' of update {update} is {value}")
        found[update][name] = float(value)
    return dict(found)
