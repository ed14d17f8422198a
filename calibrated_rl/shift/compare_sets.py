"""All estimators that two sets of dialogues can be given, by a short name each, and the sets measured with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import nearest
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.reading import reading
from calibrated_rl.shift.registry import ENCODED, ESTIMATORS
from calibrated_rl.shift.sources import matched_replies
from calibrated_rl.shift.two_sample.replies import ReplyTest
from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found between two sets."""

    figures: dict[str, Estimate] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Estimators that the data were not enough for, and why."""
    matched: int = 0
    """Histories that both sides replied to."""


def settings_of(name: str, seed: int, encoder: str, null_halvings: int | None) -> dict[str, Any]:
    """The settings of an estimator that a comparison decides."""
    settings: dict[str, Any] = {"seed": seed}
    if null_halvings is not None:
        settings["null_halvings"] = null_halvings
    return settings | ({"encoder": encoder} if name in ENCODED else {})


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: one of ``names`` is no estimator.
    """
    if unknown := [name for name in names if name not in ESTIMATORS]:
        raise UserError(
            f"there is no estimator '{unknown[0]}'; there are {', '.join(ESTIMATORS)}{nearest(unknown[0], ESTIMATORS)}"
        )


def compare_sets(
    sets: DialogueSets,
    names: Sequence[str],
    *,
    encoder: str,
    seed: int = 0,
    null_halvings: int | None = None,
    replies: MatchedReplies | None = None,
    on_start: Callable[[str], None] = lambda name: None,
) -> Comparison:
    """Measure ``sets`` with the estimators called ``names``; where both sides replied to the same histories often
    enough, the reply tests are taken on these too.

    Args:
        encoder: package, folder or ``hashing``; see ``encoder.py``.
        null_halvings: for the null bands; None leaves each estimator its own number.
        replies: of both sides to the same histories; None looks for such histories in ``sets``.
        on_start: told each estimator before its turn comes.

    Raises:
        UserError: a set is empty, there is no such estimator, or none of them can measure these sets.
    """
    sets.require_both("comparison")
    check_names(names)
    matched = matched_replies(sets) if replies is None else replies
    enough = len(set(matched.dialogue))
    found = Comparison(matched=len(matched))
    for name in dict.fromkeys(names):
        on_start(name)
        estimator = build(ESTIMATORS[name], settings_of(name, seed, encoder, null_halvings))
        data: dict[str, DialogueSets | MatchedReplies] = {name: sets}
        if isinstance(estimator, ReplyTest) and enough >= 2 * estimator.settings.folds:
            data[f"{name}, matched"] = matched
        for label, given in data.items():
            try:
                found.figures.update(estimator.measure(given))
            except UserError as error:
                found.refused[label] = str(error)
    if not found.figures:
        raise UserError("; ".join(found.refused.values()) or "no estimator was named")
    return found


def population_figures(human: list[Dialogue], simulator: list[Dialogue], names: Sequence[str]) -> dict[str, Any]:
    """``compare_sets`` ready for JSON: ``figures`` by name, each with its ``reading``, and ``refused``."""
    sets = DialogueSets(human=human, simulator=simulator)
    if not names:
        return {"figures": {}, "refused": {}}
    try:
        found = compare_sets(sets, names, encoder=DEFAULT)
    except UserError as error:
        return {"figures": {}, "refused": {", ".join(names): str(error)}}
    figures = {name: {**figure.as_dict(), "reading": reading(figure)} for name, figure in found.figures.items()}
    return {"figures": figures, "refused": found.refused}
