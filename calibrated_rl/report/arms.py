"""The arms in the order in which they are shown, with the words and the colour that each has everywhere.

Both come from the arms' own classes (``config/arms.py``). For a user's arm, the run's summary contains what its class
said when it was trained (``arms_of``): a report needs no code of the user's.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

from calibrated_rl.config.arms import CALIBRATED, INTERACTIVE, STATIC, ArmStyle, builtin_arms, find_arm, find_arms
from calibrated_rl.errors import UserError

LOGGED = ArmStyle("logged", "the dialogue that the logs have with the same user", "#B4B4AE", "o")
"""No arm, but shown beside the arms' dialogues."""
HUMAN_COLOR = LOGGED.color
BEFORE_COLOR = find_arm(INTERACTIVE).style.color
"""The uncalibrated simulator is the one that ``interactive`` trains against."""
AFTER_COLOR = find_arm(CALIBRATED).style.color

MAIN_PAIR = f"{CALIBRATED}-{INTERACTIVE}"
"""What calibration is worth: the difference that is shown of every variant."""
SECOND_PAIR = f"{CALIBRATED}-{STATIC}"

_others: ContextVar[Mapping[str, ArmStyle]] = ContextVar("_others")


@cache
def builtin_styles() -> dict[str, ArmStyle]:
    """Of the arms that the package brings, in the order of tables."""
    return {arm.name: arm.style for arm in find_arms(builtin_arms())}


@contextmanager
def arms_of(summary: Mapping[str, Any]) -> Iterator[None]:
    """Within, arms are shown as they were called in the run of this summary; what is no style in it is passed over."""
    given_styles = {}
    styles = summary.get("styles")
    for name, raw_style in styles.items() if isinstance(styles, dict) else ():
        if isinstance(raw_style, dict) and raw_style.keys() == {"label", "meaning", "color", "marker"}:
            with suppress(UserError):
                given_styles[name] = ArmStyle(**{key: str(value) for key, value in raw_style.items()})
    reset_token = _others.set(given_styles)
    try:
        yield
    finally:
        _others.reset(reset_token)


def style(arm: str) -> ArmStyle:
    """The style of ``arm``; an arm that we do not know is drawn in grey under its own name."""
    styles = {**_others.get({}), **builtin_styles(), "logged": LOGGED}
    return styles.get(arm) or ArmStyle(arm.replace("_", " "), "")


def answers_to_a_simulator(arm: str) -> bool:
    """Whether a simulator answers ``arm`` while it trains; of arms that we do not know it is taken to be so."""
    return arm not in builtin_arms() or find_arm(arm).meets == "simulator"


def in_order(arms: Iterable[str]) -> list[str]:
    """``arms`` without repeats, the known ones first and in the order of the table."""
    names = list(dict.fromkeys(arms))
    known_arms = ("logged", *builtin_styles())
    return [arm for arm in known_arms if arm in names] + [arm for arm in names if arm not in known_arms]


def pair_label(pair: str) -> str:
    """``calibrated-static`` as the report writes it; ``calibrated-static@NAME`` is what the proxy NAME says of it."""
    arms, _, user = pair.partition("@")
    return " − ".join(style(arm).label for arm in arms.split("-")) + (f", {user}" if user else "")
