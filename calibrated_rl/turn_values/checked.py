"""Turn values with checks: an error in one names the user's line, and its result must be one finite number a turn."""

from collections.abc import Sequence

from calibrated_rl.components.plain_data import NotPlain, numbers
from calibrated_rl.components.user_code import call, described
from calibrated_rl.errors import UserError
from calibrated_rl.turn_values.base import Case, Floats, TurnValue


def values_of(value: TurnValue, cases: Sequence[Case]) -> Floats:
    """``value.value(cases)``, [N].

    Raises:
        UserError: it failed, or it returned something else than [N] finite numbers.
    """

    def description() -> str:
        return described(type(value), "turn value", "value")

    result = call(type(value), description, value.value, cases)
    try:
        return numbers(result, len(cases), "turn")
    except NotPlain as problem:
        raise UserError(f"{description()}: {problem}") from None
