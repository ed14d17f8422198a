"""A run's simulator, started again: how it replies to the histories of human dialogues, how it talks, when it leaves.

It is named ``RUN:MODEL`` (``runs/dev:calibrated``): a folder in ``RUN/models``, or ``uncalibrated`` for what the run
aligned. It talks with the policy that the run's arms started from, the clone of the logged one. Nothing is written.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.endpoint_checks import refuse_endpoint_simulator
from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.evaluation.held_out import probabilities_known
from calibrated_rl.evaluation.replies import Answer, answers, endings_of, matched_simulators, matched_with_humans
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
from calibrated_rl.shift.sources import SourceDialogues, sample_dialogues, with_acts

logger = logging.getLogger(__name__)

KEY = "live"
"""Seeds all draws: two simulators on the same histories get the same random numbers."""


@dataclass(frozen=True, kw_only=True)
class SimulatorReplies:
    """The simulator's side of a comparison with human dialogues."""

    dialogues: list[Dialogue]
    """One with the starting policy for each user."""
    answers: list[Answer]
    estimates: dict[str, Estimate]
    """Likelihood of the human turns, and the decision to end."""


def live_name(name: str) -> tuple[Path, str] | None:
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
        self.run = (folder.resolve(), tuple(overrides))
        self.progress = progress
        config = load_config(config_file(folder), overrides, saved=True)
        self.inputs = read_inputs(config, folder, progress, training=False)
        self._models = prepare_models(self.inputs)
        self._cluster: Cluster | None = None
        refuse_endpoint_simulator(config, f"to be started as {self.name}")
        start_folder = folder / "models" / "start"
        self.policy = start_folder if start_folder.is_dir() else self._models.policy.folder
        self.simulator = folder / "models" / model
        if not self.simulator.is_dir():
            model_names = sorted(path.name for path in (folder / "models").glob("*") if path.is_dir())
            if model != "uncalibrated":
                raise UserError(f"{folder} has no model '{model}'; there are uncalibrated, {', '.join(model_names)}")
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
        self._cluster = start_cluster(self.inputs, self._models, {POLICY: self.policy, SIMULATOR: self.simulator})
        try:
            yield
        finally:
            self._cluster.close()
            self._cluster = None

    @contextmanager
    def started_on(self, other: "LiveSimulator | None") -> Iterator[None]:
        """As ``started``; with ``other``, of the same run, whose engines are running: these get this one's weights."""
        if other is None:
            with self.started():
                yield
            return
        logger.info(f"{self.name}: on the engines of {other.name}")
        self._cluster = other.cluster
        self._cluster.serve(SIMULATOR, self.simulator)
        try:
            yield
        finally:
            self._cluster = None

    def speak(self, human_dialogues: Sequence[Dialogue], draws: int) -> SimulatorReplies:
        """Let it reply to the histories of ``human_dialogues``, and talk on their scenarios.

        Args:
            draws: replies to each history; the first is compared, all count towards the decision to end.

        Raises:
            UserError: ``human_dialogues`` has no user turn.
        """
        with_user_turns = [dialogue for dialogue in human_dialogues if dialogue.user_turn_indices()]
        if not with_user_turns:
            raise UserError(f"{self.name}: no user speaks in the dialogues that it is compared with")
        logger.info(f"{self.name}: {draws} replies to each human turn in {len(with_user_turns)} dialogues")
        drawn_answers = answers(self.cluster.collector, self.cluster.simulator, with_user_turns, KEY, draws)
        estimates = self._likelihood(with_user_turns)
        if drawn_answers:
            estimates |= EndingDecision().measure(endings_of(self.inputs.task, drawn_answers))
        return SimulatorReplies(dialogues=self._talk(with_user_turns), answers=drawn_answers, estimates=estimates)

    def _talk(self, dialogues: Sequence[Dialogue]) -> list[Dialogue]:
        scenarios = list({dialogue.scenario.id: dialogue.scenario for dialogue in dialogues}.values())
        ticks = self.progress.ticks(f"{self.name} talks", len(scenarios))
        try:
            groups = self.cluster.collector.collect(
                scenarios, self.cluster.simulator, group_size=1, arm=KEY, update=0, seed=0, kind="evaluation",
                on_dialogue=ticks, judged=False,
            )  # fmt: skip
        except RolloutFailure as failure:
            raise UserError(f"{self.name}: no dialogue came about ({failure.reason})") from failure
        return [with_acts(dialogue, self.inputs.task) for group in groups for dialogue in group]

    def _likelihood(self, dialogues: Sequence[Dialogue]) -> dict[str, Estimate]:
        """Of the human turns that fit into the engine's context. Engines score prompts at temperature 1 and with all
        tokens: where the simulator speaks otherwise it is another, and its likelihood is left out."""
        if not probabilities_known(self.inputs.config):
            return {}
        if (temperature := self.inputs.config.simulator.sampling.temperature) != 1:
            logger.warning(f"{self.name}: speaks at temperature {temperature:g}; likelihood is measured at 1 alone")
            return {}
        chat, max_tokens = self._models.simulator.chat, self.inputs.config.simulator.engine.max_model_len - 1
        views = [sample.tokens for sample in log_samples(dialogues, Side.USER, chat)]
        scored = [(d, view) for d, view in zip(dialogues, views, strict=True) if len(view) <= max_tokens]
        if not scored:
            return {}
        ticks = self.progress.ticks(f"{self.name} scores the human turns", len(scored))
        values = []
        for _, view in scored:
            scores = np.concatenate([[np.nan], self.cluster.simulator.score([int(i) for i in view.ids])])
            values.append(np.where(view.mask, scores, np.nan).astype(np.float32))
            ticks()
        return human_turn_likelihood([dataclasses.replace(d, user_tokens=view) for d, view in scored], values)


@dataclass(frozen=True, kw_only=True)
class LiveComparison:
    """Two sides to compare, one or both of them live simulators."""

    reference: SourceDialogues
    compared: SourceDialogues
    replies: MatchedReplies
    estimates: dict[str, Estimate]
    """Likelihood and endings of the live simulators."""


def compare_live(
    reference: SourceDialogues | LiveSimulator, compared: LiveSimulator, *, draws: int, limit: int, seed: int
) -> LiveComparison:
    """Let ``compared`` (and ``reference``, if that is a simulator too) reply to the histories of human dialogues: those
    of ``reference``, or else the held-out logs of the run of the first simulator; at most ``limit`` (0: all) of these.

    Raises:
        UserError: as ``LiveSimulator.speak``.
    """
    with ExitStack() as stack:
        started: LiveSimulator | None = None
        if isinstance(reference, LiveSimulator):
            logs = sample_dialogues(reference.inputs.logs[Split.HELD_OUT], limit, seed)
            stack.enter_context(reference.started())
            reference_spoken = reference.speak(logs, draws)
            reference_set = SourceDialogues(name=reference.name, dialogues=reference_spoken.dialogues)
            if reference.run == compared.run:
                started = reference
            else:
                stack.close()  # their memory may not suffice for both
        else:
            logs, reference_spoken = sample_dialogues(reference.dialogues, limit, seed), None
            reference_set = dataclasses.replace(reference, dialogues=logs)
        stack.enter_context(compared.started_on(started))
        compared_spoken = compared.speak(logs, draws)
    estimates, task = compared_spoken.estimates, compared.inputs.task
    replies = matched_with_humans(task, compared_spoken.answers)
    if reference_spoken is not None:
        replies = matched_simulators(task, reference_spoken.answers, compared_spoken.answers)
        # The suffixes are those of the command line's sets; files of ``--out`` have these keys.
        estimates = {
            f"{name}, {side}": estimate
            for side, spoken in (("REFERENCE", reference_spoken), ("COMPARED", compared_spoken))
            for name, estimate in spoken.estimates.items()
        }
    return LiveComparison(
        reference=reference_set,
        compared=SourceDialogues(name=compared.name, dialogues=compared_spoken.dialogues),
        replies=replies,
        estimates=estimates,
    )
