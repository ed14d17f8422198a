"""Whether a task's dialogues fit into the engines' context: checked on its human logs before anything starts, and on a
scenario without a log once the policy has no context left for its first turn."""

from collections.abc import Sequence

from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Turn
from calibrated_rl.errors import UserError

MAY_END_EARLY = 0.05
"""Share of the logs that need not fit: the few longest dialogues should not decide the cost of all."""


def context_needed(tokens: ChatTokens, side: Side, logs: Sequence[Dialogue], max_turn_tokens: int) -> list[int]:
    """Context that each log needs: ``side``'s view of the whole dialogue, one more turn, and its end of turn."""

    def length(scenario: Scenario, turns: Sequence[Turn]) -> int:
        return len(view_of(tokens, scenario, side, turns))

    return [length(log.scenario, log.turns) + max_turn_tokens + 1 for log in logs]


def check_context_fits(role: str, max_model_len: int, needed: Sequence[int]) -> None:
    """Refuse a context in which more than ``MAY_END_EARLY`` of the dialogues would be cut off.

    Args:
        role: of the engine, ``policy`` or ``simulator``; the key of its settings in the config.
        max_model_len: of its engine, in tokens.
        needed: tokens that each log needs (``context_needed``).

    Raises:
        UserError: names the key, how many logs do not fit, and what would be enough.
    """
    n_too_long = sum(need > max_model_len for need in needed)
    if n_too_long <= MAY_END_EARLY * len(needed):
        return
    enough = sorted(needed)[len(needed) - 1 - int(MAY_END_EARLY * len(needed))]
    raise UserError(
        f"{role}.engine.max_model_len is {max_model_len} tokens: {n_too_long} of {len(needed)} calibration logs do not "
        f"fit with one more turn. {enough} would be enough for {1 - MAY_END_EARLY:.0%} of them, {max(needed)} for "
        f"all; raise it, or lower {role}.sampling.max_turn_tokens"
    )


def check_context_for_first_turn(
    tokens: ChatTokens, scenario: Scenario, max_turn_tokens: int, max_model_len: int
) -> None:
    """Refuse a context that the policy's own instructions and greeting fill, whatever its user opens with.

    Args:
        tokens: of the policy.
        max_turn_tokens: of one turn of the policy.
        max_model_len: of its engine, in tokens.

    Raises:
        UserError: names the key, the scenario, and what an empty first turn of the user would need.
    """
    greeting_turn = Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)
    empty_turn = Turn(side=Side.USER, text="", source=Source.LOG)
    needed = len(view_of(tokens, scenario, Side.POLICY, [greeting_turn, empty_turn])) + max_turn_tokens + 1
    if needed > max_model_len:
        raise UserError(
            f"policy.engine.max_model_len is {max_model_len} tokens: the instructions and the greeting of scenario "
            f"{scenario.id} alone leave the policy no space for a turn; with it they take {needed}, before the user "
            "has said a word. Raise it, lower policy.sampling.max_turn_tokens, or shorten the task's instructions"
        )
