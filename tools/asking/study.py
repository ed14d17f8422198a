"""Aligns simulators with replies that a scripted human was asked for, and measures what is left of the exact shift.

Every cell (how the histories were picked, how many, which seed) is a file, so that the study resumes where it stopped.
All are measured on the same dialogues of the run's policy with held-out people, which nothing of the study learns from.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.evaluation.asking import Visit, choose, disagreements, latest_visits, sampled
from calibrated_rl.evaluation.replies import exact_replies
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.rollout.conversation import stable_seed
from calibrated_rl.statistics.intervals import Interval, mean_over_seeds
from calibrated_rl.storage.files import read_json, write_json
from calibrated_rl.training.simulator_calibration import answered_turn, calibration_inputs
from calibrated_rl.training.training_run import TrainingRun

logger = logging.getLogger(__name__)

NONE, CHOSEN, RANDOM = "none", "chosen", "random"
KEY = "ask-study"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all cells share; a study resumes with the same ones alone."""

    source: str
    """The run folder."""
    arm: str
    """ARM-SEED in it."""
    simulators: list[str]
    """Whose disagreement counts; their folders."""
    candidates: int
    """Histories that each seed picks from."""
    updates: int
    """Last updates whose dialogues are looked at, at most."""
    draws: int
    scenarios: int
    """Held-out people whom the policy meets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One simulator to fit and to measure."""

    picked: str
    """``chosen``, ``random`` or ``none``."""
    count: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.picked}-{self.count}-{self.seed}"


def cells(counts: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed."""
    return [
        Cell(picked=picked, count=count, seed=seed)
        for seed in seeds
        for picked, count in [(NONE, 0), *((picked, count) for count in counts for picked in (CHOSEN, RANDOM))]
    ]


def missing(folder: Path, all_cells: Sequence[Cell]) -> list[Cell]:
    """Cells without a result in ``folder``."""
    return [cell for cell in all_cells if not _file(folder, cell).is_file()]


def _file(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.json"


class AskingStudy:
    """The running study."""

    def __init__(self, run: TrainingRun, setup: Setup) -> None:
        self._run, self._setup = run, setup
        source, learner, cluster = Path(setup.source), run.cluster.learner, run.cluster
        learner.load(POLICY, source / "policies" / setup.arm, trainable=False)
        cluster.policy.publish(learner.weight_update(POLICY, cluster.policy.version + 1))
        self._visits = latest_visits(source / "replay" / setup.arm, setup.candidates, setup.updates)
        self._update = max(visit.dialogue.update for visit in self._visits) + 1
        self._disagreement = self._disagreements()
        self._dialogues, self._views = self._held_out()

    def _disagreements(self) -> dict[str, float]:
        """By visit."""
        file = self._run.inputs.folder / "disagreement.json"
        if not file.is_file():
            setup, inputs = self._setup, self._run.inputs
            members = [Path(folder) for folder in setup.simulators]
            ticks = inputs.progress.ticks("comparing simulators", len(members) ** 2 * len(self._visits) * setup.draws)
            values = disagreements(
                self._run.cluster, members, self._visits, setup.draws,
                inputs.config.simulator.sampling.max_turn_tokens, ticks,
            )  # fmt: skip
            write_json(file, {_place(v): float(d) for v, d in zip(self._visits, values, strict=True)})
        return dict(read_json(file))

    def _held_out(self) -> tuple[list[Dialogue], list[Any]]:
        """The policy's dialogues with held-out people, and the user's view of each."""
        inputs, cluster = self._run.inputs, self._run.cluster
        assert inputs.human is not None
        groups = cluster.collector.collect(
            inputs.task.scenarios(Split.HELD_OUT, self._setup.scenarios), inputs.human, group_size=1, arm=KEY,
            update=0, seed=0, kind="evaluation", judged=False,
        )  # fmt: skip
        dialogues = [d for group in groups for d in group if d.user_turn_indices()]
        samples = log_samples(dialogues, Side.USER, self._run.models.simulator.chat)
        return dialogues, [sample.tokens for sample in samples]

    def run(self, cell: Cell) -> None:
        """Pick, ask, align, measure, and write the cell's file."""
        folder = self._run.inputs.folder / "models" / cell.name
        picked = self._pick(cell)
        turns = [answered_turn(self._run.models, v.dialogue, v.index, self._reply(v, cell.seed)) for v in picked]
        metrics = self._run.inputs.calibration.align(
            calibration_inputs(self._run, self._update, cell.seed, folder, turns)
        )
        shutil.rmtree(folder)
        by_dialogue = self._shift()
        result = {"picked": cell.picked, "count": len(picked), "seed": cell.seed, "metrics": metrics, "tv": by_dialogue}
        write_json(_file(self._run.inputs.folder, cell), result)
        logger.info(f"{cell.name}: exact shift {np.mean(list(by_dialogue.values())):.3f} a dialogue")

    def _pick(self, cell: Cell) -> list[Visit]:
        if cell.picked == NONE:
            return []
        visits = sampled(self._visits, self._setup.candidates, cell.seed)
        disagreement_N: NDArray[np.float64] = np.array([self._disagreement[_place(visit)] for visit in visits])
        return choose(visits, disagreement_N if cell.picked == CHOSEN else None, cell.count, cell.seed)

    def _reply(self, visit: Visit, seed: int) -> str:
        """Of a human of the training population: the same whichever way the history was picked."""
        human, dialogue = self._run.inputs.human, visit.dialogue
        assert human is not None
        return human.sample(dialogue.scenario, visit.history, stable_seed(KEY, seed, dialogue.id, visit.index))

    def _shift(self) -> dict[str, float]:
        """By held-out scenario: the sum of the exact total variations of a dialogue's user turns, as the bound has it
        where one terminal reward of range 1 is at stake."""
        inputs = self._run.inputs
        assert inputs.human is not None
        sampling = inputs.config.simulator.sampling
        scores = self._run.cluster.learner.log_probs(SIMULATOR, self._views, sampling.temperature)
        replies = exact_replies(inputs.human, self._dialogues, self._views, scores, sampling.max_turn_tokens)
        scenario_of = {dialogue.id: dialogue.scenario.id for dialogue in self._dialogues}
        sums = dict.fromkeys(scenario_of.values(), 0.0)
        tv = -np.expm1(np.minimum(np.asarray(replies.simulator) - np.asarray(replies.human), 0.0))
        for name, value in zip(replies.dialogue, tv, strict=True):
            sums[scenario_of[name]] += float(value)
        return sums


def _place(visit: Visit) -> str:
    return f"{visit.dialogue.id}/{visit.index}"


def summarise(folder: Path, all_cells: Sequence[Cell]) -> dict[str, Any]:
    """``rows`` of the table, from the cells that are done: the exact shift a dialogue, and the paired difference of
    chosen and random histories (below 0: choosing helps), with intervals over seeds and held-out people."""
    tv: dict[tuple[str, int], dict[int, dict[str, float]]] = {}
    for cell in all_cells:
        if (file := _file(folder, cell)).is_file():
            tv.setdefault((cell.picked, cell.count), {})[cell.seed] = read_json(file)["tv"]
    rows = []
    for count in sorted({cell.count for cell in all_cells}):
        row: dict[str, Any] = {"count": count}
        row |= {p: _dict(mean_over_seeds(tv[p, count])) for p in (NONE, CHOSEN, RANDOM) if (p, count) in tv}
        both = [tv.get((picked, count), {}) for picked in (CHOSEN, RANDOM)]
        if common := both[0].keys() & both[1].keys():
            chosen, random = ({seed: of[seed] for seed in sorted(common)} for of in both)
            row["difference"] = _dict(mean_over_seeds(chosen, random))
            row["seeds"] = len(common)
        rows.append(row)
    return {"rows": rows}


def _dict(interval: Interval) -> dict[str, float]:
    return json.loads(json.dumps(interval.as_dict()))  # type: ignore[no-any-return]
