"""Held-out evaluation: the last checkpoint of an arm with the eval user, on scenarios that nothing else has met."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.evaluation.called_human import called_human
from calibrated_rl.evaluation.replies import answers, endings_of, exact_replies, matched_with_humans
from calibrated_rl.inference.config import ReshapingConfig, SamplingConfig
from calibrated_rl.judges.checked import criteria_of, scored_by_task
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.failures import MostlyBroken
from calibrated_rl.rollout.users import User, UserModel
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.shift.probabilities.ending import EndingDecision, calibration_curve
from calibrated_rl.shift.probabilities.likelihood import human_turn_likelihood
from calibrated_rl.shift.profile import behaviour_profile
from calibrated_rl.shift.two_sample.classifier import TwoSampleTest
from calibrated_rl.tasks.base import MeasuringTask, Task

logger = logging.getLogger(__name__)

SETTINGS = (("held_out", "same", None), ("held_out_greedy", "same", 0.0), ("held_out_shifted", "shifted", None))
"""Name in the summary, population, temperature (None: that of training)."""


def evaluate_policy(
    inputs: RunInputs, collector: Collector, users: Mapping[str, User], arm: str, seed: int, updates: int,
    simulator: UserModel | None = None,
) -> tuple[dict[str, Any], list[Dialogue]]:  # fmt: skip
    """One dialogue of the served policy with each eval user on each held-out scenario, in each setting.

    Args:
        users: the eval users by name: the scripted human or the proxy under an empty name, or several proxies.
        arm, seed, updates: whose policy it is and how far it was trained: they key the draws.
        simulator: that which the arm trained with, where proxies are to say how far it was exploited.

    Returns:
        ``{setting: {"reward"|"success"|"turns": {scenario id: value}, "endings": {...}}}`` and all the
        dialogues, those of the first setting first. ``not_scored`` beside ``endings`` counts dialogues that
        broke in all their tries through no fault of the policy. Their scenarios have no value. Whatever else has a
        value by scenario becomes a metric of the summary and a column of the report under its name: those of the task
        (``MeasuringTask``), ``called_human`` (``called_human.py``), and ``exploitation``, the reward with
        ``simulator`` minus that with the proxies. With several users a setting has the means over them, and
        ``SETTING@NAME`` what each of them says.

    Raises:
        UserError: a proxy that stands for human users broke most of the dialogues.
        RolloutFailure: no dialogue came about for another reason.
    """
    results: dict[str, Any] = {}
    all_dialogues: list[Dialogue] = []
    sizes = inputs.config.evaluation
    for name, population, temperature in SETTINGS:
        count = sizes.scenarios if population == "same" else sizes.shifted
        if count == 0:
            continue
        scenarios = inputs.task.scenarios(Split(sizes.split), count, population)

        sampling = sampling_of(collector.policy_sampling, sizes.sampling, temperature)

        def meet(user: User, label: str, scenarios: Sequence[Scenario] = scenarios,
                 sampling: SamplingConfig = sampling) -> list[Dialogue]:  # fmt: skip
            ticks = inputs.progress.ticks(f"{arm} (seed {seed}) meets {label}", len(scenarios))
            groups = collector.collect(
                scenarios, user, group_size=1, arm=f"{arm}/{label}", update=updates, seed=seed, kind="evaluation",
                sampling=sampling, on_dialogue=ticks,
            )  # fmt: skip
            return [dialogue for group in groups for dialogue in group]

        by_user = {}
        for user_name, user in users.items():
            label = f"{name}/{user_name}" if user_name else name
            dialogues = meet(user, label)
            all_dialogues += dialogues
            by_user[user_name] = scores_of(inputs, dialogues, count)
            if n_missing := count - len(dialogues):
                text = f"{n_missing} of {count} dialogues broke and are not scored"
                logger.warning(f"{arm} (seed {seed}), {label}: {text}")
        results[name] = pooled(list(by_user.values()))
        results |= {f"{name}@{user_name}": scores for user_name, scores in by_user.items() if user_name}
        if simulator is not None and name == SETTINGS[0][0]:
            results[name]["exploitation"] = _exploitation(partial(meet, simulator, "own"), results[name]["reward"])
    return results, all_dialogues


def sampling_of(trained: SamplingConfig, reshaping: ReshapingConfig, temperature: float | None) -> SamplingConfig:
    """How a policy that was ``trained`` so speaks in the evaluation, at ``temperature`` (None: that of training)."""
    return SamplingConfig(
        temperature=trained.temperature if temperature is None else temperature,
        max_turn_tokens=trained.max_turn_tokens, **asdict(reshaping),
    )  # fmt: skip


def scores_of(inputs: RunInputs, dialogues: Sequence[Dialogue], count: int) -> dict[str, Any]:
    """The metrics of ``dialogues``, ``count`` of which were wanted, by scenario; and their endings."""
    values: dict[str, dict[str, float]] = {"reward": {}, "success": {}, "turns": {}}
    for dialogue in dialogues:
        for metric, value in metrics_of(inputs.task, dialogue).items():
            values.setdefault(metric, {})[dialogue.scenario.id] = value
    if inputs.config.evaluation.called_human:
        logs = inputs.logs[Split(inputs.config.evaluation.split)][: inputs.config.evaluation.logs]
        values["called_human"] = called_human(inputs.task, logs, dialogues)
    endings = Counter(dialogue.ending for dialogue in dialogues)
    scores: dict[str, Any] = values | {"endings": {k: v / len(dialogues) for k, v in sorted(endings.items())}}
    return scores | ({"not_scored": count - len(dialogues)} if len(dialogues) < count else {})


def metrics_of(task: Task, dialogue: Dialogue) -> dict[str, float]:
    """Reward, success, user turns, the judge's criteria and the task's own metrics of one finished dialogue."""
    outcome = dialogue.outcome
    assert outcome is not None
    measures = isinstance(task, MeasuringTask) and scored_by_task(outcome)
    further = task.metrics(dialogue.scenario, dialogue.turns, outcome) if measures else {}  # type: ignore[attr-defined]
    return {
        "reward": outcome.episode_return,
        "success": float(outcome.success),
        "turns": float(len(dialogue.user_turn_indices())),
        **{f"judge_{name}": value for name, value in criteria_of(outcome).items()},
        **further,
    }


def pooled(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The means over eval users, by scenario; of each scenario over those that have a value of it."""
    if len(scores) == 1:
        return dict(scores[0])
    means: dict[str, Any] = {}
    for metric in dict.fromkeys(name for each in scores for name in each):
        if metric == "not_scored":
            means[metric] = sum(each.get(metric, 0) for each in scores)
            continue
        gathered: dict[str, list[float]] = {}
        for each in scores:
            for key, value in each.get(metric, {}).items():
                gathered.setdefault(key, []).append(value)
        # An ending that a user did not see is a share of 0; a scenario that a user did not score is left out.
        over = (lambda values: len(scores)) if metric == "endings" else len
        means[metric] = {key: sum(values) / over(values) for key, values in sorted(gathered.items())}
    return means


def _exploitation(meet: Callable[[], list[Dialogue]], rewards: Mapping[str, float]) -> dict[str, float]:
    """By how much the reward with the arm's own simulator lies above ``rewards``, by scenario."""
    try:
        dialogues = meet()
    except (RolloutFailure, MostlyBroken) as failure:
        logger.warning(f"the simulator broke the dialogues that exploitation is measured on ({failure})")
        return {}
    earned = {d.scenario.id: d.outcome.episode_return for d in dialogues if d.outcome is not None}
    return {name: earned[name] - reward for name, reward in rewards.items() if name in earned}


def measure_simulator(
    inputs: RunInputs, models: BaseModels, cluster: Cluster, null_band: tuple[float, float] | None, seed: int = 0
) -> tuple[dict[str, Any], tuple[float, float] | None]:
    """How far the served simulator is from the human on the same logged histories.

    Returns:
        The metrics of ``summary.json`` under ``simulator`` (of one behind an endpoint, or whose distribution is
        reshaped before it is sampled, from samples alone), and the classifier's null band on words (it depends on the
        human data alone, so that it can be passed to the next measurement).
    """
    logs = inputs.logs[Split.HELD_OUT][: inputs.config.evaluation.logs]
    known = probabilities_known(inputs.config) and models.local_simulator is not None
    metrics = _by_log_probs(inputs, models, cluster, logs) if known else {}
    draws = inputs.config.shift.draws
    drawn_answers = answers(cluster.collector, cluster.simulator_user, logs, f"measure-{seed}", draws)
    matched = matched_with_humans(inputs.task, drawn_answers)
    words = TwoSampleTest(TwoSampleTest.Config(inputs="words"))
    band = null_band or words.null_band(matched)
    result = words.measure(matched, band)
    on_acts = TwoSampleTest(TwoSampleTest.Config(inputs="acts")).measure(matched)
    metrics |= {
        "classifier_accuracy": result.accuracy.as_dict(),
        "classifier_accuracy_acts": on_acts.accuracy.as_dict(),
        "tv_lower_bound_by_turn": [float(t.low) for t in result.tv.by_turn],
    }
    if draws > 1:
        endings = endings_of(inputs.task, drawn_answers)
        metrics |= {name: estimate.as_dict() for name, estimate in EndingDecision().measure(endings).items()}
        curve = calibration_curve(endings.probability, endings.ended)
        metrics["ending_curve"] = [dataclasses.asdict(point) for point in curve]
    return metrics, band


def _by_log_probs(
    inputs: RunInputs, models: BaseModels, cluster: Cluster, logs: Sequence[Dialogue]
) -> dict[str, Any]:  # fmt: skip
    """What takes the simulator's log-probs of human replies."""
    samples = log_samples(logs, Side.USER, models.simulator.chat)
    spoken = [log for log in logs if log.user_turn_indices()]
    # As it speaks: at another temperature it is another simulator.
    sampling = inputs.config.simulator.sampling
    log_probs = cluster.learner.log_probs(SIMULATOR, [s.tokens for s in samples], sampling.temperature)
    likelihood = human_turn_likelihood(
        [dataclasses.replace(log, user_tokens=s.tokens) for log, s in zip(spoken, samples, strict=True)], log_probs
    )
    metrics = {
        "human_turn_nll": likelihood["nll_per_turn"].as_dict(), "nll_per_byte": likelihood["nll_per_byte"].as_dict(),
    }  # fmt: skip
    if inputs.human is not None:
        replies = exact_replies(inputs.human, spoken, [s.tokens for s in samples], log_probs, sampling.max_turn_tokens)
        metrics |= {f"exact_{name}": estimate.as_dict() for name, estimate in replies.shift().items()}
    return metrics


def probabilities_known(config: RunConfig) -> bool:
    """Whether the learner's probabilities of what people said are those with which the simulator speaks: not where
    ``simulator.sampling`` cuts or penalises tokens. Says so in the log."""
    if reshaped := config.simulator.sampling.reshaped:
        logger.warning(
            f"simulator.sampling has {', '.join(reshaped)}: the probability with which the simulator says what people "
            "said is not known; likelihood and exact shift are left out, and the shift is estimated from samples"
        )
    return not reshaped


def profile_scenarios(inputs: RunInputs) -> list[Scenario]:
    """Scenarios on which the simulator's behaviour is compared with the human's."""
    count = min(len(inputs.logs[Split.MONITOR]), inputs.config.evaluation.profile)
    return inputs.task.scenarios(Split.MONITOR, count)


def simulator_dialogues(inputs: RunInputs, cluster: Cluster) -> list[Dialogue]:
    """The served simulator with the policy that every arm starts from, on monitor scenarios."""
    groups = cluster.collector.collect(
        profile_scenarios(inputs),
        cluster.simulator_user,
        group_size=1,
        arm="profile",
        update=0,
        seed=0,
        kind="evaluation",
        judged=False,
    )
    return [dialogue for group in groups for dialogue in group]


def profile_of(task: Task, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
    return {name: value.as_dict() for name, value in behaviour_profile(dialogues, task).items()}
