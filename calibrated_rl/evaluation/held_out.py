"""Held-out evaluation: the last checkpoint of an arm with the eval user, on scenarios that nothing else has met."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split
from calibrated_rl.evaluation.replies import answers, endings_of, exact_replies, matched_with_humans
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.shift.probabilities.ending import EndingDecision, calibration_curve
from calibrated_rl.shift.probabilities.likelihood import human_turn_likelihood
from calibrated_rl.shift.profile import behaviour_profile
from calibrated_rl.shift.two_sample.classifier import TwoSampleTest
from calibrated_rl.tasks.base import ScriptedHuman, Task

logger = logging.getLogger(__name__)

SETTINGS = (("held_out", "same", None), ("held_out_greedy", "same", 0.0), ("held_out_shifted", "shifted", None))
"""Name in the summary, population, temperature (None: that of training)."""


def evaluate_policy(
    inputs: RunInputs, collector: Collector, user: ScriptedHuman | ReplicaPool, arm: str, seed: int, updates: int
) -> tuple[dict[str, Any], list[Dialogue]]:
    """One dialogue of the served policy on each held-out scenario, in each setting.

    Args:
        user: the eval user: the scripted human, or the proxy that stands for human users.
        arm, seed, updates: whose policy it is and how far it was trained: they key the draws.

    Returns:
        ``{setting: {"reward"|"success"|"turns": {scenario id: value}, "endings": {...}}}`` and all the
        dialogues, those of the first setting first. ``not_scored`` beside ``endings`` counts dialogues that
        broke in all their tries through no fault of the policy. Their scenarios have no value. Whatever else has a
        value by scenario becomes a metric of the summary and a column of the report under its name.

    Raises:
        UserError: a proxy that stands for human users broke most of the dialogues.
        RolloutFailure: no dialogue came about for another reason.
    """
    results: dict[str, Any] = {}
    all_dialogues: list[Dialogue] = []
    for name, population, temperature in SETTINGS:
        sizes = inputs.config.evaluation
        count = sizes.scenarios if population == "same" else sizes.shifted
        if count == 0:
            continue
        groups = collector.collect(
            inputs.task.scenarios(Split(sizes.split), count, population), user, group_size=1,
            arm=f"{arm}/{name}", update=updates, seed=seed, kind="evaluation",
            temperature=temperature, on_dialogue=inputs.progress.ticks(f"{arm} (seed {seed}) meets {name}", count),
        )  # fmt: skip
        dialogues = [dialogue for group in groups for dialogue in group]
        all_dialogues += dialogues
        values: dict[str, dict[str, float]] = {"reward": {}, "success": {}, "turns": {}}
        for dialogue in dialogues:
            assert dialogue.outcome is not None
            values["reward"][dialogue.scenario.id] = dialogue.outcome.episode_return
            values["success"][dialogue.scenario.id] = float(dialogue.outcome.success)
            values["turns"][dialogue.scenario.id] = float(len(dialogue.user_turn_indices()))
        endings = Counter(dialogue.ending for dialogue in dialogues)
        results[name] = values | {"endings": {k: v / len(dialogues) for k, v in sorted(endings.items())}}
        if n_missing := count - len(dialogues):
            results[name]["not_scored"] = n_missing
            logger.warning(f"{arm} (seed {seed}), {name}: {n_missing} of {count} dialogues broke and are not scored")
    return results, all_dialogues


def measure_simulator(
    inputs: RunInputs, models: BaseModels, cluster: Cluster, null_band: tuple[float, float] | None, seed: int = 0
) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """How far the served simulator is from the human on the same logged histories.

    Returns:
        The metrics of ``summary.json`` under ``simulator``, and the classifier's null band on words (it
        depends on the human data alone, so that it can be passed to the next measurement).
    """
    logs = inputs.logs[Split.HELD_OUT][: inputs.config.evaluation.logs]
    samples = log_samples(logs, Side.USER, models.simulator.chat)
    spoken = [log for log in logs if log.user_turn_indices()]
    # As it speaks: at another temperature it is another simulator.
    temperature = inputs.config.simulator.sampling.temperature
    log_probs = cluster.learner.log_probs(SIMULATOR, [s.tokens for s in samples], temperature)
    likelihood = human_turn_likelihood(
        [dataclasses.replace(log, user_tokens=s.tokens) for log, s in zip(spoken, samples, strict=True)], log_probs
    )
    draws = inputs.config.shift.draws
    drawn_answers = answers(cluster.collector, cluster.simulator, logs, f"measure-{seed}", draws)
    matched = matched_with_humans(inputs.task, drawn_answers)
    words = TwoSampleTest(TwoSampleTest.Config(inputs="words"))
    band = null_band or words.null_band(matched)
    result = words.measure(matched, band)
    on_acts = TwoSampleTest(TwoSampleTest.Config(inputs="acts")).measure(matched)
    metrics = {
        "human_turn_nll": likelihood["nll_per_turn"].as_dict(),
        "nll_per_byte": likelihood["nll_per_byte"].as_dict(),
        "classifier_accuracy": result.accuracy.as_dict(),
        "classifier_accuracy_acts": on_acts.accuracy.as_dict(),
        "tv_lower_bound_by_turn": [float(t.low) for t in result.tv.by_turn],
    }
    if draws > 1:
        endings = endings_of(inputs.task, drawn_answers)
        metrics |= {name: estimate.as_dict() for name, estimate in EndingDecision().measure(endings).items()}
        curve = calibration_curve(endings.probability, endings.ended)
        metrics["ending_curve"] = [dataclasses.asdict(point) for point in curve]
    if inputs.human is not None:
        replies = exact_replies(
            inputs.human, spoken, [s.tokens for s in samples], log_probs,
            inputs.config.simulator.sampling.max_turn_tokens,
        )  # fmt: skip
        metrics |= {f"exact_{name}": estimate.as_dict() for name, estimate in replies.shift().items()}
    return metrics, band


def profile_scenarios(inputs: RunInputs) -> list[Scenario]:
    """Scenarios on which the simulator's behaviour is compared with the human's."""
    count = min(len(inputs.logs[Split.MONITOR]), inputs.config.evaluation.profile)
    return inputs.task.scenarios(Split.MONITOR, count)


def simulator_dialogues(inputs: RunInputs, cluster: Cluster) -> list[Dialogue]:
    """The served simulator with the policy that every arm starts from, on monitor scenarios."""
    groups = cluster.collector.collect(
        profile_scenarios(inputs), cluster.simulator, group_size=1, arm="profile", update=0, seed=0, kind="evaluation"
    )
    return [dialogue for group in groups for dialogue in group]


def profile_of(task: Task, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    return {name: value.as_dict() for name, value in behaviour_profile(dialogues, task).items()}
