"""Whether the engines' context holds the dialogues of a task: asked of its human logs, before anything starts."""

from collections.abc import Sequence

from calibrated_rl.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.tokens import ChatTokens, view_of

MAY_END_EARLY = 0.05
"""Share of the logs that need not fit: the few longest dialogues should not decide what all of them cost."""


def room_for(tokens: ChatTokens, side: Side, logs: Sequence[Dialogue], max_turn_tokens: int) -> list[int]:
    """Context that each log needs: ``side``'s view of the whole dialogue, one more turn, and its end of turn."""

    def length(scenario: Scenario, turns: Sequence[Turn]) -> int:
        return len(view_of(tokens, scenario, side, turns))

    return [length(log.scenario, log.turns) + max_turn_tokens + 1 for log in logs]


def check_room(role: str, max_model_len: int, needed: Sequence[int]) -> None:
    """Refuse a context in which more than ``MAY_END_EARLY`` of the dialogues would be cut off.

    Args:
        role: of the engine, ``policy`` or ``simulator``; its settings stand in the config under this name.
        max_model_len: of its engine, in tokens.
        needed: tokens that each log needs (``room_for``).

    Raises:
        UserError: names the key, how many logs do not fit, and what would be enough.
    """
    short = sum(need > max_model_len for need in needed)
    if short <= MAY_END_EARLY * len(needed):
        return
    enough = sorted(needed)[len(needed) - 1 - int(MAY_END_EARLY * len(needed))]
    raise UserError(
        f"{role}.engine.max_model_len is {max_model_len} tokens: {short} of {len(needed)} calibration logs do not "
        f"fit with one more turn. {enough} would be enough for {1 - MAY_END_EARLY:.0%} of them, {max(needed)} for "
        f"all; raise it, or lower {role}.sampling.max_turn_tokens"
    )
