"""A run's simulator, started again and asked: what it says where people spoke, how it talks, when it leaves.

It is named ``RUN:MODEL`` (``runs/dev:calibrated``): a folder in ``RUN/models``, or ``uncalibrated`` for what the run
aligned. Dialogues are held with the policy that the run's arms started from, the clone of the logged one. Nothing is
written.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.run_config import load_config
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.evaluation.replies import Answer, answers, endings_of, matched_simulators, matched_with_people
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.models.checks import check_folder
from calibrated_rl.run.base_models import prepare_models
from calibrated_rl.run.cluster import Cluster, start_cluster
from calibrated_rl.run.inputs import read_inputs
from calibrated_rl.run.saved_run import check_engines_fit, config_file
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.probabilities.ending import EndingDecision
from calibrated_rl.shift.probabilities.likelihood import human_turn_likelihood
from calibrated_rl.shift.sources import SourceDialogues, some, with_acts

logger = logging.getLogger(__name__)

KEY = "live"
"""Seeds all draws: two simulators on the same histories get the same random numbers."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """What a simulator did where people had spoken."""

    dialogues: list[Dialogue]
    """One with the starting policy for each person."""
    answers: list[Answer]
    figures: dict[str, Estimate]
    """Likelihood of the people's turns, and the decision to end."""


def live(name: str) -> tuple[Path, str] | None:
    """Run folder and model that ``name`` means; None where it names no live simulator."""
    folder, colon, model = name.rpartition(":")
    if not colon or Path(name).expanduser().exists() or not (Path(folder).expanduser() / "config.yaml").is_file():
        return None
    return Path(folder).expanduser(), model


class LiveSimulator:
    """Engines of the simulator and of the starting policy of a run; use ``started``."""

    def __init__(self, folder: Path, model: str, progress: Progress, overrides: Sequence[str] = ()) -> None:
        """
        Args:
            overrides: settings of the run as ``key=value`` that replace its own.

        Raises:
            UserError: the run has no such model, or its settings cannot be used here.
        """
        self.name = f"{folder}:{model}"
        self.progress = progress
        config = load_config(config_file(folder), overrides, saved=True)
        self.inputs = read_inputs(config, folder, progress, training=False)
        self._models = prepare_models(self.inputs)
        self._cluster: Cluster | None = None
        start = folder / "models" / "start"
        self.policy = start if start.is_dir() else self._models.policy.folder
        self.simulator = folder / "models" / model
        if not self.simulator.is_dir():
            there = sorted(path.name for path in (folder / "models").glob("*") if path.is_dir())
            if model != "uncalibrated":
                raise UserError(f"{folder} has no model '{model}'; there are uncalibrated, {', '.join(there)}")
            self.simulator = self._models.simulator.folder
        check_folder(self.simulator, model)

    @property
    def cluster(self) -> Cluster:
        """Both engines."""
        assert self._cluster is not None, "its engines have not been started"
        return self._cluster

    @contextmanager
    def started(self) -> Iterator[None]:
        """While both engines run. Ray must have been started."""
        config = self.inputs.config
        engines = {POLICY: (config.policy.engine, self.policy), SIMULATOR: (config.simulator.engine, self.simulator)}
        check_engines_fit(engines)
        logger.info(f"{self.name}: starting its engine and that of the policy it talks with")
        self._cluster = start_cluster(
            self.inputs, self._models, {POLICY: self.policy, SIMULATOR: self.simulator}
        )
        try:
            yield
        finally:
            self._cluster.close()

    def speak(self, people: Sequence[Dialogue], draws: int) -> Spoken:
        """Ask it about ``people``'s dialogues.

        Args:
            draws: replies to each history; the first is compared, all count towards the decision to end.

        Raises:
            UserError: no one in ``people`` speaks.
        """
        real = [dialogue for dialogue in people if dialogue.user_turn_indices()]
        if not real:
            raise UserError(f"{self.name}: no user speaks in the dialogues that it is compared with")
        logger.info(f"{self.name}: {draws} replies to each human turn in {len(real)} dialogues")
        found = answers(self.cluster.collector, self.cluster.simulator, real, KEY, draws)
        figures = self._likelihood(real)
        if found:
            figures |= EndingDecision().measure(endings_of(self.inputs.task, found))
        return Spoken(dialogues=self._talk(real), answers=found, figures=figures)

    def _talk(self, real: Sequence[Dialogue]) -> list[Dialogue]:
        scenarios = list({dialogue.scenario.id: dialogue.scenario for dialogue in real}.values())
        ticks = self.progress.ticks(f"{self.name} talks", len(scenarios))
        try:
            groups = self.cluster.collector.collect(
                scenarios, self.cluster.simulator, group_size=1, arm=KEY, update=0, seed=0, kind="evaluation",
                on_dialogue=ticks,
            )  # fmt: skip
        except RolloutFailure as failure:
            raise UserError(f"{self.name}: no dialogue came about ({failure.reason})") from failure
        return [with_acts(dialogue, self.inputs.task) for group in groups for dialogue in group]

    def _likelihood(self, real: Sequence[Dialogue]) -> dict[str, Estimate]:
        """Of the people's turns that fit into the engine's context. Engines score prompts at temperature 1: at another
        one the simulator is another, and its likelihood is left out."""
        if (temperature := self.inputs.config.simulator.sampling.temperature) != 1:
            logger.warning(f"{self.name}: speaks at temperature {temperature:g}; likelihood is measured at 1 alone")
            return {}
        chat, most = self._models.simulator.chat, self.inputs.config.simulator.engine.max_model_len - 1
        views = [sample.tokens for sample in log_samples(real, Side.USER, chat)]
        kept = [(d, view) for d, view in zip(real, views, strict=True) if len(view) <= most]
        if not kept:
            return {}
        ticks = self.progress.ticks(f"{self.name} reads people's turns", len(kept))
        values = []
        for _, view in kept:
            scores = np.concatenate([[np.nan], self.cluster.simulator.score([int(i) for i in view.ids])])
            values.append(np.where(view.mask, scores, np.nan).astype(np.float32))
            ticks()
        return human_turn_likelihood([dataclasses.replace(d, user_tokens=view) for d, view in kept], values)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Two sides to compare, one or both of them live simulators."""

    people: SourceDialogues
    others: SourceDialogues
    replies: MatchedReplies
    figures: dict[str, Estimate]
    """Likelihood and endings of the live simulators."""


def ask(
    people: SourceDialogues | LiveSimulator, others: LiveSimulator, *, draws: int, limit: int, seed: int
) -> Asked:
    """Let ``others`` (and ``people``, if that is a simulator too) speak where people have spoken: in ``people``, or
    else in the held-out logs of the run of the first simulator; at most ``limit`` (0: all) of these dialogues.

    Raises:
        UserError: as ``LiveSimulator.speak``.
    """
    if isinstance(people, LiveSimulator):
        logs = some(people.inputs.logs[Split.HELD_OUT], limit, seed)
        with people.started():
            first = people.speak(logs, draws)
        shown = SourceDialogues(name=people.name, dialogues=first.dialogues)
    else:
        logs, first = some(people.dialogues, limit, seed), None
        shown = dataclasses.replace(people, dialogues=logs)
    with others.started():
        second = others.speak(logs, draws)
    figures, task = second.figures, others.inputs.task
    replies = matched_with_people(task, second.answers)
    if first is not None:
        replies = matched_simulators(task, first.answers, second.answers)
        figures = {
            f"{name}, {which}": figure
            for which, spoken in (("PEOPLE", first), ("OTHERS", second))
            for name, figure in spoken.figures.items()
        }
    return Asked(
        people=shown,
        others=SourceDialogues(name=others.name, dialogues=second.dialogues),
        replies=replies,
        figures=figures,
    )
