"""Checkpoints of an arm in training, so that a run that was stopped at any moment goes on where the last was taken.

One holds: the policy with its optimizer and random state (the learner's own checkpoint), the arm's counters and
metrics, which simulator was served, and the log-probs of logs under the starting policy (they are computed once a
run, in batches that a run which goes on would not meet again). Dialogues are not in it: the replay store has them and
is rewound to the update of the checkpoint. It is written aside and renamed, with a checksum of every file, so that it
is there whole or not at all; a broken one is named, and the one before it is taken. Nothing in it is a pickle.

The last ones are kept, and the best: that with the highest ``ArmState.reward``. When the arm is done, the policy of the
best lies below ``best/`` in Hugging Face format. No reported figure comes of it.
"""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError
from calibrated_rl.learner.checkpoint import merge_adapters
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.run.layout import CHECKPOINTS
from calibrated_rl.storage.checksums import check_checksums, write_checksums
from calibrated_rl.storage.files import read_json, to_disk, write_json
from calibrated_rl.training.rollout_source import InFlight

logger = logging.getLogger(__name__)

FORMAT = 5
"""Raised whenever another program would misread or miss something. 1 had DeepSpeed's own files, 2 no ``ahead``, 3 no
``groups_extra``, without which the account of a run does not add up; 4 called ``in_flight`` by another name."""
STATE, LEARNER, LOG_PROBS = "arm.json", "learner", "log_probs.npz"
PARTIAL = ".partial"
LogProbs = Mapping[tuple[str, ...], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """What an arm knows beside its models."""

    updates: int
    policy_tokens: int
    user_tokens: int
    human_turns: int
    tokens_per_group: float
    seen_own_tokens: bool
    seconds: float
    """Spent on the arm so far."""
    simulator: str
    """Folder of the simulator that is served, below the run folder; empty: the uncalibrated one."""
    simulator_version: int
    reward: float | None = None
    """Mean over the updates since the checkpoint before of the metric ``reward``: the mean reward of the dialogues that
    were learned from and of those in groups that were put aside, in which all earned the same, from the arm's own side;
    by it the best checkpoint is chosen. Monitor dialogues are not held at every checkpoint, nor by every arm, and
    held-out ones must choose nothing. None: the arm learns from no dialogues of its own (``cloned``)."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    shift: list[dict[str, Any]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    flaws: dict[str, int] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    sampled: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    groups_dropped: dict[str, str] = field(default_factory=dict)
    groups_extra: list[str] = field(default_factory=list)
    """Ids of groups that were asked for in place of others."""
    policy_tokens_discarded: int = 0
    """In groups that others took the place of."""
    in_flight: InFlight | None = None
    """Groups that were begun and not learned from; None: the arm runs no dialogues of its own."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint read back."""

    state: ArmState
    learner: Path
    log_probs: dict[tuple[str, ...], NDArray[np.float32]]


class ArmCheckpoints:
    """The checkpoints of one arm and seed below a run folder."""

    def __init__(self, run: Path, arm: str, seed: int, kept: int) -> None:
        """``kept``: how many of the last ones stay beside the best; the one before the last is for a broken last."""
        self.folder = run / CHECKPOINTS / f"{arm}-{seed}"
        self.best_policy = run / "best" / f"{arm}-{seed}"
        self._kept = kept

    def save(self, state: ArmState, log_probs: LogProbs, write_learner: Callable[[Path], None]) -> None:
        """Write one, whole or not at all, and remove those that are no longer needed.

        Args:
            write_learner: writes the learner's checkpoint into the folder it is given.

        Raises:
            OSError: it could not be written. Those that are there stay, and nothing is left of it.
        """
        try:
            self._save(state, log_probs, write_learner)
        except OSError:
            shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)  # a full disk has no room for what is of no use
            raise

    def _save(self, state: ArmState, log_probs: LogProbs, write_learner: Callable[[Path], None]) -> None:
        aside, place = self.folder / PARTIAL, self.folder / f"update-{state.updates:06d}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_learner(aside / LEARNER)
        arrays = {str(number): array for number, array in enumerate(log_probs.values())}
        np.savez(aside / LOG_PROBS, keys=json.dumps(list(log_probs)), **arrays)  # type: ignore[arg-type]
        content = {"format": FORMAT, "state": dataclasses.asdict(state)}
        (aside / STATE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        write_checksums(aside)
        for path in (*aside.rglob("*"), aside):
            to_disk(path)
        shutil.rmtree(place, ignore_errors=True)
        os.rename(aside, place)
        to_disk(self.folder)
        for old in self._places()[: -self._kept]:
            if old != self._best():
                shutil.rmtree(old)

    def latest(self) -> Saved | None:
        """The last whole checkpoint; None without one. Those that are broken are passed over, with a warning.

        Raises:
            UserError: a checkpoint is of a format that this version does not know.
        """
        for place in reversed(self._places()):
            try:
                saved = _read(place)
            except _Broken as reason:
                logger.warning(f"refused: {place}: {reason}")
            else:
                logger.debug(f"read: {place}")
                return saved
        return None

    def finish(self) -> None:
        """The arm is done: put the best policy where it stays, and remove the rest."""
        best = self._best()
        if best is not None:
            shutil.rmtree(self.best_policy, ignore_errors=True)
            self.best_policy.parent.mkdir(exist_ok=True)
            merge_adapters(best / LEARNER, POLICY)
            os.rename(best / LEARNER / POLICY, self.best_policy)
            write_json(self.best_policy / "best.json", {"update": _number(best), "reward": _reward(best)})
            write_checksums(self.best_policy)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _best(self) -> Path | None:
        """That with the highest reward, the last of several; None where none is known."""
        rewards = [(reward, place) for place in self._places() if (reward := _reward(place)) is not None]
        return max(rewards)[1] if rewards else None

    def _places(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("update-*") if re.fullmatch(r"update-\d{6,}", p.name))


class _Broken(Exception):
    """A checkpoint that is not as it was written."""


def _number(place: Path) -> int:
    return int(place.name.removeprefix("update-"))


def _reward(place: Path) -> float | None:
    """What a checkpoint was worth; None where it does not say, or cannot be read."""
    try:
        reward = read_json(place / STATE)["state"]["reward"]
    except (UserError, KeyError, TypeError):
        return None
    return float(reward) if isinstance(reward, int | float) and math.isfinite(reward) else None


def _read(place: Path) -> Saved:
    try:
        content = read_json(place / STATE)
    except UserError as error:
        raise _Broken(str(error)) from error
    if content.get("format") != FORMAT:
        raise UserError(
            f"{place} has the format {content.get('format')}; this version reads {FORMAT} only: finish the arm with "
            "the version that wrote it, or remove the folder to start the arm over"
        )
    try:
        check_checksums(place)
    except UserError as error:
        raise _Broken(str(error)) from error
    with np.load(place / LOG_PROBS, allow_pickle=False) as stored:
        keys = [tuple(key) for key in json.loads(str(stored["keys"]))]
        log_probs = {key: stored[str(number)] for number, key in enumerate(keys)}
    state = dict(content["state"])
    if state["in_flight"] is not None:
        state["in_flight"] = InFlight(**state["in_flight"])
    return Saved(state=ArmState(**state), learner=place / LEARNER, log_probs=log_probs)
