"""Trajectories of tau-bench (``traj``) and simulations of tau2-bench (``messages`` beside ``reward_info``).

    {"task_id": 3, "trial": 0, "reward": 1.0, "traj": [{"role": "user", "content": "Hi"}, ...]}

The benchmark's reward is the dialogue's, and its success is a reward of 1, as the benchmark has it. Words such as
``###STOP###``, by which its users end a dialogue, are no part of the dialogue. These users are models as a rule: such
logs say how a model talks as a user, not how people do.

A message with tool calls goes to the tools alone: words beside the calls are nobody's turn. Trajectories of agents that
write their calls as text (``Action: {...}``) are refused: their tools answer in the user's name. Where the simulated
user or the machine failed (``user_error``, ``infrastructure_error``), the reward says nothing of the policy and is left
out.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.formats.messages import is_messages, talk
from calibrated_rl.logs.found import Found, one_a_row, parsed
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.record import METADATA
from calibrated_rl.logs.row import Row
from calibrated_rl.logs.sides import Sides

STOPPED = "marks by which users end dialogues (###STOP###), left out of the text"
NOT_SCORED = "simulations that ended by a failure of the user or the machine: their reward is left out"
_FAILED = ("user_error", "infrastructure_error")
_CALL_AS_TEXT = re.compile(r"^\s*Action:\s*(?:```(?:json)?\s*)?\{", re.MULTILINE)
_RESULT_AS_TEXT = "API output:"
_MARK = re.compile(r"\s*###(STOP|TRANSFER|OUT-OF-SCOPE)###\s*")
_TAU2 = ("reward_info", "termination_reason", "simulation_id", "task_id")
_KNOWN = (
    "task_id", "trial", "reward", "info", "reward_info", "termination_reason", "timestamp", "start_time", "end_time",
    "duration", "agent_cost", "user_cost", "seed", "simulation_id", "id",
)  # fmt: skip
SLACK = 1e-6
"""Of the benchmark's test whether a reward is 1."""


class TauBenchFormat:
    """A record is a dialogue."""

    title = "tau-bench"

    def fit(self, content: Any) -> int:
        if not isinstance(content, dict):
            return 0
        if is_messages(content.get("traj")):
            return 2
        n_own = sum(key in content for key in _TAU2)
        return 1 + n_own if n_own > 1 and is_messages(content.get("messages")) else 0

    def dialogues(self, rows: Iterator[Row], settings: FileSettings) -> Iterator[Found | LogProblem]:
        sides = Sides(settings)
        yield from one_a_row(rows, lambda row: iter([_found(row, sides)]), sides)


def _found(row: Row, sides: Sides) -> Found:
    content = row.content
    key = next((key for key in ("traj", "messages") if isinstance(content, dict) and key in content), None)
    if key is None:
        raise Refused("'traj' is missing, and so is 'messages'")
    counts: Counter[str] = Counter()
    recorded = parsed(content[key])
    _refuse_calls_as_text(recorded)
    messages, ending = _without_marks(recorded, counts)
    dialogue = talk(row, content, messages, sides, key=key, ids=("id",), known=_KNOWN, calls_are_unheard=True)
    dialogue.counts += counts
    line, metadata = dialogue.line, dialogue.line.setdefault(METADATA, {})
    if "id" not in line and content.get("task_id") is not None:
        line["id"] = "-".join(str(content[each]) for each in ("task_id", "trial") if content.get(each) is not None)
    reward = _reward(content)
    if content.get("termination_reason") in _FAILED:
        metadata |= {key: line.pop(key) for key in ("reward", "success") if key in line}
        dialogue.counts[NOT_SCORED] += reward is not None
    elif reward is not None:
        metadata.pop("reward", None)
        line |= {"reward": reward, "success": abs(reward - 1) <= SLACK}
    reason = content.get("termination_reason")
    if ending := reason if isinstance(reason, str) and reason.strip() else ending:
        line["ending"] = ending
        metadata.pop("termination_reason", None)
    if not metadata:
        del line[METADATA]
    return dialogue


def _refuse_calls_as_text(messages: Any) -> None:
    for index, message in enumerate(messages if isinstance(messages, list) else []):
        role, text = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(text, str) and (
            (role == "user" and text.lstrip().startswith(_RESULT_AS_TEXT))
            or (role == "assistant" and _CALL_AS_TEXT.search(text))
        ):
            raise Refused(
                f"message {index} is a tool call or its result as text (Action: {{...}}, {_RESULT_AS_TEXT} ...), as "
                "act and react agents write them: only trajectories with 'tool_calls' are read"
            )


def _reward(content: Mapping[str, Any]) -> float | None:
    info = content.get("reward_info")
    reward = content.get("reward", info.get("reward") if isinstance(info, Mapping) else None)
    return float(reward) if isinstance(reward, int | float) and not isinstance(reward, bool) else None


def _without_marks(messages: Any, counts: Counter[str]) -> tuple[Any, str]:
    """The messages without the marks in what users say, and what the last mark says, in small letters, or nothing."""
    if not isinstance(messages, list):
        return messages, ""
    cleaned, ending = [], ""
    for message in messages:
        text = message.get("content") if isinstance(message, dict) and message.get("role") == "user" else None
        if isinstance(text, str) and (marks := _MARK.findall(text)):
            counts[STOPPED] += len(marks)
            message = {**message, "content": _MARK.sub("\n", text).strip()}
            ending = f"user_{marks[-1].lower()}"
        cleaned.append(message)
    return cleaned, ending
