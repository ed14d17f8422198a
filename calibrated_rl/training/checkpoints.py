"""Checkpoints of an arm in training, so that a run that was stopped at any moment resumes from the last one.

One contains: the policy with its optimizer and random state (the learner's own checkpoint), the arm's counters and
metrics, which simulator was served and when it was aligned, and the log-probs of logs under the starting policy (they
are computed once a run, in batches that a resumed run would not see again). Dialogues are not in it: the replay store
has them and is rewound to the update of the checkpoint. It is written to a temporary folder and renamed, with a
checksum of every file, so that it exists whole or not at all; a broken one is logged, and the one before it is used.
Nothing in it is a pickle.

The last ones are kept, and the best: that with the highest ``ArmState.reward``. When the arm is done, the policy of the
best lies below ``best/`` in Hugging Face format. No reported metric comes from it.
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

from calibrated_rl.calibration.trigger import ScheduleState
from calibrated_rl.errors import UserError
from calibrated_rl.learner.checkpoint import merge_adapters
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.run.layout import CHECKPOINTS
from calibrated_rl.storage.checksums import check_checksums, write_checksums
from calibrated_rl.storage.files import read_json, to_disk, write_json
from calibrated_rl.training.rollout_source import InFlight

logger = logging.getLogger(__name__)

FORMAT = 6
"""Increased whenever a program of another version would misread or miss something. 1 had DeepSpeed's own files, 2 no
``ahead``, 3 no ``groups_extra``, without which the account of a run does not add up; 4 called ``in_flight`` by another
name, 5 had no ``alignments``."""
STATE, LEARNER, LOG_PROBS = "arm.json", "learner", "log_probs.npz"
PARTIAL = ".partial"
LogProbs = Mapping[tuple[str, ...], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """The state of an arm besides its models."""

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
    were learned from and of those in discarded groups, in which all earned the same, from the arm's own side; the best
    checkpoint is the one where it is highest. Monitor dialogues do not run at every checkpoint, nor in every arm, and
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
    """Ids of groups that were requested in place of others."""
    policy_tokens_discarded: int = 0
    """In groups that others replaced."""
    alignments: ScheduleState = field(default_factory=ScheduleState)
    """When the simulator was aligned again, and on what the next time depends."""
    in_flight: InFlight | None = None
    """Groups that were begun and not learned from yet; None: the arm runs no dialogues of its own."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint read back."""

    state: ArmState
    learner: Path
    log_probs: dict[tuple[str, ...], NDArray[np.float32]]


class ArmCheckpoints:
    """The checkpoints of one arm and seed below a run folder."""

    def __init__(self, run: Path, arm: str, seed: int, n_kept: int) -> None:
        """``n_kept``: how many of the last ones stay besides the best; an earlier one is used if the last is broken."""
        self.folder = run / CHECKPOINTS / f"{arm}-{seed}"
        self.best_policy = run / "best" / f"{arm}-{seed}"
        self._n_kept = n_kept

    def save(self, state: ArmState, log_probs: LogProbs, write_learner: Callable[[Path], None]) -> None:
        """Write one, whole or not at all, and remove those that are no longer needed.

        Args:
            write_learner: writes the learner's checkpoint into the folder it is given.

        Raises:
            OSError: it could not be written. Earlier ones stay, and the incomplete one is removed.
        """
        try:
            self._save(state, log_probs, write_learner)
        except OSError:
            shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)  # free the space on a full disk
            raise

    def _save(self, state: ArmState, log_probs: LogProbs, write_learner: Callable[[Path], None]) -> None:
        partial, folder = self.folder / PARTIAL, self.folder / f"update-{state.updates:06d}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_learner(partial / LEARNER)
        arrays = {str(number): array for number, array in enumerate(log_probs.values())}
        np.savez(partial / LOG_PROBS, keys=json.dumps(list(log_probs)), **arrays)  # type: ignore[arg-type]
        content = {"format": FORMAT, "state": dataclasses.asdict(state)}
        (partial / STATE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        write_checksums(partial)
        for path in (*partial.rglob("*"), partial):
            to_disk(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
        to_disk(self.folder)
        for older in self._folders()[: -self._n_kept]:
            if older != self._best():
                shutil.rmtree(older)

    def latest(self) -> Saved | None:
        """The last whole checkpoint; None without one. Broken ones are skipped, with a warning.

        Raises:
            UserError: a checkpoint is of a format that this version does not know.
        """
        for folder in reversed(self._folders()):
            try:
                saved = _read(folder)
            except _Broken as reason:
                logger.warning(f"checkpoint {folder} is broken, skipping it: {reason}")
            else:
                logger.debug(f"resuming from the checkpoint {folder}")
                return saved
        return None

    def finish(self) -> None:
        """The arm is done: move the best policy to its final folder, and remove the checkpoints."""
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
        """The one with the highest reward, the last of several; None where no reward is known."""
        rewards = [(reward, folder) for folder in self._folders() if (reward := _reward(folder)) is not None]
        return max(rewards)[1] if rewards else None

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("update-*") if re.fullmatch(r"update-\d{6,}", p.name))


class _Broken(Exception):
    """A checkpoint that has changed since it was written."""


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("update-"))


def _reward(folder: Path) -> float | None:
    """The reward of a checkpoint; None where it has none, or cannot be read."""
    try:
        reward = read_json(folder / STATE)["state"]["reward"]
    except (UserError, KeyError, TypeError):
        return None
    return float(reward) if isinstance(reward, int | float) and math.isfinite(reward) else None


def _read(folder: Path) -> Saved:
    try:
        content = read_json(folder / STATE)
    except UserError as error:
        raise _Broken(str(error)) from error
    if content.get("format") != FORMAT:
        raise UserError(
            f"{folder} has the format {content.get('format')}; this version reads {FORMAT} only: finish the arm with "
            "the version that wrote it, or remove the folder to start the arm over"
        )
    try:
        check_checksums(folder)
    except UserError as error:
        raise _Broken(str(error)) from error
    with np.load(folder / LOG_PROBS, allow_pickle=False) as stored:
        keys = [tuple(key) for key in json.loads(str(stored["keys"]))]
        log_probs = {key: stored[str(number)] for number, key in enumerate(keys)}
    state = dict(content["state"])
    state["alignments"] = ScheduleState.from_plain(state["alignments"])
    if state["in_flight"] is not None:
        state["in_flight"] = InFlight(**state["in_flight"])
    return Saved(state=ArmState(**state), learner=folder / LEARNER, log_probs=log_probs)
