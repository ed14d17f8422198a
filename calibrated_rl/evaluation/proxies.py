"""How well proxies stand for people: what they do with the clone of the logged policy, beside what people did with
people.

The clone is the policy that every arm starts from (the arm ``start``). People are the logs of the very
scenarios on which arms are evaluated, which no proxy was fitted to. A proxy that makes deals as often, talks as long
and leaves its partner as many points as people do can stand for them; how far it differs stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.config.arms import START
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.evaluation.held_out import SETTINGS, metrics_of
from calibrated_rl.evaluation.summary import eval_users_of
from calibrated_rl.statistics.intervals import SeedScores, mean_over_seeds
from calibrated_rl.tasks.base import Task


def proxies_beside_people(task: Task, logs: Sequence[Dialogue], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By metric: ``people``, and of each proxy its ``value`` with the clone and the ``difference`` to people on the
    same scenarios. Empty while the clone has not been evaluated.

    Args:
        logs: of the scenarios of the evaluation.
        results: of arms and seeds.
    """
    clones = {r["seed"]: r["scores"] for r in results if r["arm"] == START and "scores" in r}
    if not clones:
        return {}
    people: dict[str, dict[str, float]] = {}
    for log in logs:
        if log.outcome is not None:
            for metric, value in metrics_of(task, log).items():
                people.setdefault(metric, {})[log.scenario.id] = value
    proxies = {user: f"{SETTINGS[0][0]}@{user}" if user else SETTINGS[0][0] for user in eval_users_of(results)}
    table: dict[str, Any] = {}
    for metric, of_people in people.items():
        values = {
            user or "pooled": {seed: scores[setting].get(metric, {}) for seed, scores in clones.items()}
            for user, setting in proxies.items()
        }
        table[metric] = {
            "people": mean_over_seeds({0: of_people}).as_dict(),
            "proxies": {user: _beside(scores, of_people) for user, scores in values.items() if all(scores.values())},
        }
    return table


def _beside(scores: SeedScores, people: Mapping[str, float]) -> dict[str, Any]:
    difference = None
    if all(people.keys() & of_seed.keys() for of_seed in scores.values()):
        difference = mean_over_seeds(scores, dict.fromkeys(scores, people)).as_dict()
    return {"value": mean_over_seeds(scores).as_dict(), "difference": difference}
