"""From the raw scores of arms and seeds to ``summary.json``: means, intervals, paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.config.arms import ORACLE, START, STATIC, builtin_arms, find_arms
from calibrated_rl.evaluation.health_summary import health_of
from calibrated_rl.evaluation.held_out import SETTINGS
from calibrated_rl.evaluation.shift_summary import latest, records_of, transfer_of
from calibrated_rl.statistics.intervals import gap_closed, mean_over_seeds

BUDGET = ("policy_tokens", "user_tokens", "human_turns", "updates", "seconds", "train_reward_last")


SeedScores = dict[int, dict[str, float]]

COMPARED = {"held_out_greedy": "_greedy", "held_out": ""}
"""Settings of the evaluation in which arms are compared, and what the keys of these comparisons end with."""


def common_seeds(*arms: SeedScores) -> list[SeedScores]:
    """The scores of arms on the seeds that all of them were trained with."""
    seeds = set.intersection(*(set(arm) for arm in arms))
    return [{seed: scores for seed, scores in arm.items() if seed in seeds} for arm in arms]


def pairs_of(arms: Sequence[str], names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Which of ``arms`` are compared with which, by what their classes say, in the order of tables.

    Args:
        names: arms as the configuration names them, for those that the package does not bring.
    """
    arm_names = set(arms)
    classes = find_arms([*(name for name in names if ":" in name), *(arm for arm in arms if arm in builtin_arms())])
    return [
        (arm.name, opponent) for arm in classes for opponent in arm.compared_with if {arm.name, opponent} <= arm_names
    ]


def summarise(results: Sequence[Mapping[str, Any]], seeds: Sequence[int], names: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of all arms.

    Args:
        names: as of ``pairs_of``.
        results: one record an arm and seed, as ``jobs/compare.py`` writes them to ``arms/ARM-SEED.json``.
    """
    arms: dict[str, Any] = {}
    users = eval_users_of(results)
    scores: dict[str, dict[str, dict[str, SeedScores]]] = {
        setting: {user: {} for user in users} for setting in COMPARED
    }
    for arm in dict.fromkeys(result["arm"] for result in results):
        of_arm = {result["seed"]: result for result in results if result["arm"] == arm}
        entry: dict[str, Any] = {}
        evaluated = {seed: result["scores"] for seed, result in of_arm.items() if "scores" in result}
        for setting in dict.fromkeys(name for seed_scores in evaluated.values() for name in seed_scores):
            if any(setting not in seed_scores for seed_scores in evaluated.values()):
                continue
            entry[setting] = {}
            for metric in _metric_names([seed_scores[setting] for seed_scores in evaluated.values()]):
                by_seed = {seed: seed_scores[setting][metric] for seed, seed_scores in evaluated.items()}
                entry[setting][metric] = mean_over_seeds(by_seed).as_dict()
        for setting in COMPARED:
            for user in users if setting in entry else ():
                named = f"{setting}@{user}" if user else setting
                by_seed = {seed: seed_scores[named]["reward"] for seed, seed_scores in evaluated.items()}
                scores[setting][user][arm] = by_seed
        endings: dict[str, float] = {}
        for seed_scores in evaluated.values():
            for ending, share in seed_scores["held_out"]["endings"].items():
                endings[ending] = endings.get(ending, 0.0) + share / len(evaluated)
        entry["endings"] = endings
        entry["not_scored"] = sum(
            setting_scores.get("not_scored", 0)
            for each in evaluated.values() for name, setting_scores in each.items() if "@" not in name
        )  # fmt: skip
        for name in BUDGET:
            values = [result[name] for result in of_arm.values() if result[name] is not None]
            entry[name] = sum(values) / len(values) if values else None
        discarded = [result.get("policy_tokens_discarded", 0) for result in of_arm.values()]
        entry["policy_tokens_discarded"] = sum(discarded) / len(discarded)
        entry["shift"] = records_of(list(of_arm.values()))
        entry["alignments"] = [
            {"seed": seed, **alignment} for seed, result in of_arm.items() for alignment in result.get("alignments", ())
        ]
        if health := health_of(list(of_arm.values())):
            entry["health"] = health
        arms[arm] = entry
    shift = latest(arms)
    if shift is not None:
        shift["transfer"] = transfer_of(results)
    compared: dict[str, Any] = {}
    for setting, suffix in COMPARED.items():
        compared["paired" + suffix] = _paired(scores[setting], names)
        compared["gap_closed" + suffix] = _gap_closed(scores[setting][""])
    return {"arms": arms, **compared, "shift": shift, "seeds": list(seeds)}


def _paired(scores: Mapping[str, Mapping[str, SeedScores]], names: Sequence[str]) -> dict[str, Any]:
    """Differences ``A-B`` over the same scenarios and seeds, and ``A-B@USER`` with each of several eval users."""
    paired = {}
    for user, of_user in scores.items():
        for a, b in pairs_of(list(of_user), names):
            if of_user[a].keys() & of_user[b].keys():
                first, second = common_seeds(of_user[a], of_user[b])
                paired[f"{a}-{b}@{user}" if user else f"{a}-{b}"] = mean_over_seeds(first, second).as_dict()
    return paired


def _gap_closed(scores: Mapping[str, SeedScores]) -> dict[str, Any]:
    """Share of the way from static to the oracle by arm; None where the two cannot be told apart."""
    closed: dict[str, Any] = {}
    if not {STATIC, ORACLE} <= scores.keys():
        return closed
    for arm in scores:
        if arm not in (STATIC, ORACLE, START):
            static, this, oracle = common_seeds(scores[STATIC], scores[arm], scores[ORACLE])
            interval = gap_closed(static, this, oracle) if static else None
            closed[arm] = None if interval is None else interval.as_dict()
    return closed


def _metric_names(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """What every seed has a value of for each scenario: all that ``evaluate_policy`` scores."""
    names = [name for name, values in scores[0].items() if name != "endings" and isinstance(values, Mapping)]
    return [name for name in names if all(seed_scores.get(name) for seed_scores in scores)]


def eval_users_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of the proxies that all evaluated arms met, after an empty one for all users together."""
    settings = [result["scores"].keys() for result in results if "scores" in result]
    common = [name for name in settings[0] if all(name in each for each in settings)] if settings else []
    of_first = [name.partition("@") for name in common]
    return ["", *(user for setting, _, user in of_first if setting == SETTINGS[0][0] and user)]
