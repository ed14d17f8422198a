"""Judging saved policies again: the same held-out people, with the policy's engine alone.

In deterministic mode, with the run's settings on the same kind of machine, the figures are those that the run
itself wrote, to the last digit.
"""

import json
from collections.abc import Mapping
from typing import Any

from calibrated_rl.algorithms.parts import ArmRecord, Parts
from calibrated_rl.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.held_out import SETTINGS, evaluate_policy
from calibrated_rl.evaluation.saved_run import SavedPolicy, SavedRun
from calibrated_rl.evaluation.summary import BUDGET
from calibrated_rl.tasks.base import ScriptedHuman


def people_of(run: SavedRun) -> ScriptedHuman:
    """The people to judge with, if there are as many as the settings ask for; needs no engine.

    Raises:
        UserError: the run has no scripted human, or the task has too few scenarios.
    """
    task, sizes = run.task(), run.config.evaluation
    if sizes.scenarios < 1:
        raise UserError(f"evaluation.scenarios is {sizes.scenarios}: at least 1 is needed to judge a policy")
    for population, count in (("same", sizes.scenarios), ("shifted", sizes.shifted)):
        if count:
            task.scenarios(Split(sizes.split), count, population)
    return run.human(task)


def judge_again(parts: Parts, policy: SavedPolicy, human: ScriptedHuman) -> dict[str, Any]:
    """Let ``policy`` meet the held-out people; a record like the run's own, with fresh ``scores``."""
    parts.use_policy(policy.folder)
    recorded = policy.result or {}
    # Sampling is keyed by arm, seed and update: as the run left off, so are the draws.
    record = ArmRecord(policy.arm, policy.seed, updates=int(recorded.get("updates", 0)))
    scores, _ = evaluate_policy(parts, record, human)
    known = dict.fromkeys(BUDGET) | {name: recorded[name] for name in BUDGET if name in recorded}
    return {"arm": policy.arm, "seed": policy.seed, **known, "scores": json.loads(json.dumps(scores))}


def differences(scores: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """In which settings and figures two ``scores`` of one policy differ; empty: they are the same."""
    found = []
    for setting, _, _ in SETTINGS:
        now, then = scores.get(setting), recorded.get(setting)
        if now == then:
            continue
        if now is None or then is None or now["reward"].keys() != then["reward"].keys():
            found.append(f"{setting}: other people")
            continue
        changed = [
            person
            for person in now["reward"]
            if any(now[figure][person] != then[figure][person] for figure in ("reward", "success", "turns"))
        ]
        found.append(f"{setting}: {len(changed)} of {len(now['reward'])} people")
    return found
