"""Dialogues of people with the served policy: what the task scores them, and those that are kept."""

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Source, Turn
from calibrated_rl.rollout.failures import ending_of
from calibrated_rl.serving.requests import MOST_MESSAGES, BadRequest, find_scenario
from calibrated_rl.tasks.base import Task, count_policy_turns
from calibrated_rl.users.human import STOPPED

_FIELDS = {"scenario", "turns", "stopped", "consent"}
MOST_TEXT = 100_000
"""Characters of one turn."""


def turns_from_page(body: Any, scenarios: Sequence[Scenario]) -> tuple[Scenario, list[Turn], bool, bool]:
    """Scenario, turns with the greeting first, whether the person stopped, and whether they agreed to keep it.

    Raises:
        BadRequest: the body is not ``{scenario, turns: [{side, text}, ...], stopped, consent}``.
    """
    if not isinstance(body, Mapping) or not _FIELDS.issuperset(body):
        raise BadRequest(f"the body must be an object with {', '.join(sorted(_FIELDS))}")
    wanted = body.get("scenario")
    if isinstance(wanted, bool) or not isinstance(wanted, str | int):
        raise BadRequest("scenario must be a scenario's id or number", "scenario")
    scenario = find_scenario(scenarios, str(wanted))
    stopped, consent = body.get("stopped", False), body.get("consent", False)
    if not isinstance(stopped, bool) or not isinstance(consent, bool):
        raise BadRequest("stopped and consent must be true or false")
    listed = body.get("turns")
    if not isinstance(listed, list) or len(listed) > MOST_MESSAGES:
        raise BadRequest(f"turns must be a list of at most {MOST_MESSAGES}", "turns")
    turns = [Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)]
    for number, turn in enumerate(listed):
        side, text = (turn.get("side"), turn.get("text")) if isinstance(turn, Mapping) else (None, None)
        if side != turns[-1].side.other or not isinstance(text, str) or len(text) > MOST_TEXT:
            raise BadRequest(f"turns[{number}] must be of side {turns[-1].side.other} and have a text", "turns")
        source = Source.HUMAN if side == Side.USER else Source.POLICY
        turns.append(Turn(side=Side(side), text=text, source=source))
    return scenario, turns, stopped, consent


def outcome_of(task: Task, scenario: Scenario, turns: Sequence[Turn], stopped: bool) -> dict[str, Any]:
    """``ending`` (None: it is not over), and of a finished dialogue ``reward`` and ``success``, as training scores it.

    Args:
        stopped: the person left in the middle; then there is an ending, and nothing is scored.
    """
    ending = next((word for end in range(2, len(turns) + 1) if (word := ending_of(task, scenario, turns[:end]))), None)
    if ending is None and turns[-1].side is Side.POLICY and count_policy_turns(turns) >= task.max_policy_turns:
        ending = "max_turns"
    if ending is None:
        return {"ending": STOPPED if stopped else None, "reward": None, "success": None}
    outcome = task.outcome(scenario, turns, ending)
    return {"ending": ending, "reward": outcome.episode_return, "success": outcome.success}


class DialogueKeeper:
    """Appends dialogues to a file of its own in a folder, a line each, in the format of ``logs/jsonl.py``."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"dialogues-{secrets.token_hex(6)}.jsonl"

    def keep(self, scenario: Scenario, turns: Sequence[Turn], outcome: Mapping[str, Any]) -> str:
        """Write the dialogue to the disk; returns its id.

        Raises:
            BadRequest: a turn is blank, which logs cannot have.
        """
        if any(not turn.text.strip() for turn in turns):
            raise BadRequest("a dialogue with an empty turn is not kept: the log reader refuses such", "turns")
        name = secrets.token_hex(12)
        line: dict[str, Any] = {
            "id": name,
            "turns": [{"side": turn.side.value, "text": turn.text} for turn in turns],
            "goal": dict(scenario.goal),
            "policy_instructions": scenario.policy_instructions,
            "user_instructions": scenario.user_instructions,
        }
        if outcome["ending"] is not None:
            line["ending"] = outcome["ending"]
        if outcome["reward"] is not None:
            line |= {"reward": outcome["reward"], "success": outcome["success"]}
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
        descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return name
