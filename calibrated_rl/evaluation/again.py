"""Evaluating saved policies again: the same eval user and scenarios, with the policy's engine alone.

In deterministic mode, with the run's settings on the same kind of machine, the metrics are those that the run
itself wrote, to the last digit.
"""

import json
from collections.abc import Mapping
from typing import Any

from calibrated_rl.config.load import load_config
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.held_out import SETTINGS, evaluate_policy
from calibrated_rl.evaluation.summary import BUDGET
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.log_checks import check_evaluation
from calibrated_rl.run.proxies import is_fitted, reserved_logs
from calibrated_rl.run.saved_run import SavedPolicy, SavedRun, config_file


def check_eval_user(run: SavedRun) -> None:
    """Refuse, before an engine starts, a run without an eval user.

    Raises:
        UserError: the run has neither a scripted human nor a proxy, the proxy was not fitted yet, proxies were fitted
            to what would be evaluated, or the task has fewer scenarios than the settings ask for.
    """
    config = run.config
    check_evaluation(run.task(), config.evaluation)
    if config.proxy.model and config.proxy.sft.epochs:
        run.model("proxy")
    fitted = [name for name, settings in config.proxies.items() if endpoint_name(settings.get("model")) is None]
    for name in fitted:
        if not is_fitted(run.folder, name):
            raise UserError(f"{run.folder} has no proxy '{name}': it was never fitted")
    if fitted:
        _refuse_fitted_users(run)
    if not config.has_eval_user:
        raise UserError(f"{run.folder} has neither a scripted human nor a proxy, so its policies have no eval user")


def _refuse_fitted_users(run: SavedRun) -> None:
    """Raises: proxies were fitted to users of the scenarios that would be evaluated."""
    reserved = reserved_logs(load_config(config_file(run.folder), saved=True))
    if (wanted := reserved_logs(run.config)) > reserved:
        raise UserError(
            f"the proxies of {run.folder} were fitted to all held-out dialogues but the first {reserved}: "
            f"evaluation.scenarios and evaluation.logs can be at most that, not {wanted}"
        )
    other = [key for key in run.changed if key.split(".")[0] in ("logs", "task", "task_config")]
    if other:
        raise UserError(f"{other[0]} is another one than in the run, whose proxies may have been fitted to these users")


def evaluate_again(cluster: Cluster, policy: SavedPolicy) -> dict[str, Any]:
    """Evaluate ``policy`` with the eval user; returns a record like the run's own, with fresh ``scores``."""
    users = cluster.eval_users()
    assert users, "check_eval_user admits only runs that have one"
    cluster.serve(POLICY, policy.folder)
    recorded = policy.result or {}
    # Sampling is keyed by arm, seed and update: as the run left off, so are the draws.
    updates = int(recorded.get("updates", 0))
    scores, _ = evaluate_policy(cluster.inputs, cluster.collector, users, policy.arm, policy.seed, updates)
    budget = dict.fromkeys(BUDGET) | {name: recorded[name] for name in BUDGET if name in recorded}
    return {"arm": policy.arm, "seed": policy.seed, **budget, "scores": json.loads(json.dumps(scores))}


def differences(scores: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """In which settings two ``scores`` of one policy differ, by the metrics that both have (exploitation is measured
    where the arm's simulator runs, in training alone); empty: they are the same."""
    lines = []
    for setting in dict.fromkeys((*[name for name, _, _ in SETTINGS], *scores, *recorded)):
        current, previous = scores.get(setting), recorded.get(setting)
        if current == previous:
            continue
        if current is None or previous is None or current["reward"].keys() != previous["reward"].keys():
            lines.append(f"{setting}: other scenarios")
            continue
        both = [metric for metric in current if metric in previous and metric not in ("endings", "not_scored")]
        changed = [
            scenario
            for scenario in current["reward"]
            if any(current[metric].get(scenario) != previous[metric].get(scenario) for metric in both)
        ]
        if changed:
            lines.append(f"{setting}: {len(changed)} of {len(current['reward'])} scenarios")
    return lines
