"""Histories for humans to reply to, as a file of JSON Lines that comes back as logs (``jsonl.py``, ``asked``).

A line ends with an empty turn of the user's, for the reply. One that stays empty is refused by the reader, by its
number, and costs no other line.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calibrated_rl.data.dialogue import Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError


def asked_line(name: str, scenario: Scenario, history: Sequence[Turn], reply: str = "") -> dict[str, Any]:
    """The line of one history, which ends with a turn of the policy.

    Args:
        name: its id, once in the file.
        reply: of a human; empty: it is to be filled in.
    """
    turns = [{"side": turn.side.value, "text": turn.text} for turn in history]
    line = {
        "id": name, "split": Split.CALIBRATION.value, "asked": True,
        "policy_instructions": scenario.policy_instructions, "user_instructions": scenario.user_instructions,
        "turns": [*turns, {"side": Side.USER.value, "text": reply}],
    }  # fmt: skip
    return line | ({"goal": dict(scenario.goal)} if scenario.goal else {})


def write_lines(file: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write ``lines`` to a new ``file``, whole or not at all.

    Raises:
        UserError: it exists: humans may have replied in it.
    """
    if file.exists():
        raise UserError(f"{file} exists, and humans may have replied in it: name another file")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
