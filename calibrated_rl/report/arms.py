"""The arms in the order in which they are shown, with the words and the colour that each has everywhere.

Colours are Okabe and Ito's (and two of Tol's), which colour-blind readers can tell apart; every arm also has
a marker of its own, so that nothing hangs on colour alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How an arm is named and drawn."""

    label: str
    meaning: str
    color: str
    marker: str


STYLES: dict[str, ArmStyle] = {
    "start": ArmStyle("start", "the checkpoint that every arm starts from", "#8A8A8A", "o"),
    "cloned": ArmStyle("cloned", "imitates successful logged dialogues", "#CC79A7", "v"),
    "static": ArmStyle("static", "one turn at a time on logged histories", "#E69F00", "s"),
    "interactive": ArmStyle("interactive", "against the uncalibrated simulator", "#D55E00", "D"),
    "calibrated_once": ArmStyle("calibrated once", "simulator calibrated before training only", "#56B4E9", "<"),
    "calibrated": ArmStyle("calibrated", "simulator calibrated again and again", "#0072B2", "^"),
    "calibrated_on_policy": ArmStyle(
        "calibrated, on-policy", "and people answer the policy's own histories", "#332288", "P"
    ),
    "calibrated_more_logs": ArmStyle("calibrated, more logs", "and as many extra logged human turns", "#882255", "X"),
    "oracle": ArmStyle("oracle", "against people of the training population", "#009E73", "*"),
}

LOGGED = ArmStyle("logged", "the dialogue that the logs have with the same person", "#B4B4AE", "o")
"""No arm, but shown beside the arms' dialogues."""
HUMAN_COLOR = LOGGED.color
BEFORE_COLOR = STYLES["interactive"].color
"""The uncalibrated simulator is the one that ``interactive`` trains against."""
AFTER_COLOR = STYLES["calibrated"].color


def style(arm: str) -> ArmStyle:
    """The style of ``arm``; an arm that we do not know is drawn in grey under its own name."""
    return (STYLES | {"logged": LOGGED}).get(arm) or ArmStyle(arm.replace("_", " "), "", "#555555", "h")


def in_order(arms: Iterable[str]) -> list[str]:
    """``arms`` without repeats, the known ones first and in the order of the table."""
    given = list(dict.fromkeys(arms))
    known = ("logged", *STYLES)
    return [arm for arm in known if arm in given] + [arm for arm in given if arm not in known]


def pair_label(pair: str) -> str:
    """``calibrated-static`` as people write it."""
    return " − ".join(style(arm).label for arm in pair.split("-"))
