"""Two sets of dialogues, measured with estimators by their names (``checked.py``)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.components.user_code import UserCodeError, described
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.checked import KIND, build_estimator, check_names, measured
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.sources import matched_replies
from calibrated_rl.shift.two_sample.replies import ReplyTest
from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT
from calibrated_rl.shift.verdict import verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of comparing two sets."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Estimators that the data were not enough for, and why."""
    matched: int = 0
    """Histories that both sides replied to."""


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
        encoder: package, folder or ``hashing``; see ``sentence_encoder.py``.
        null_halvings: for the null bands; None leaves each estimator its own number.
        replies: of both sides to the same histories; None looks for such histories in ``sets``.
        on_start: called with the name of each estimator before it runs.

    Raises:
        UserError: a set is empty, there is no such estimator, or none of them can measure these sets.
        UserCodeError: a user's estimator failed, or returned a value that cannot be used.
    """
    sets.require_both("comparison")
    check_names(names)
    matched = matched_replies(sets) if replies is None else replies
    n_matched_dialogues = len(set(matched.dialogue))
    comparison = Comparison(matched=len(matched))
    for name in dict.fromkeys(names):
        on_start(name)
        estimator = build_estimator(name, seed, encoder, null_halvings)
        data: dict[str, DialogueSets | MatchedReplies] = {name: sets}
        if isinstance(estimator, ReplyTest) and n_matched_dialogues >= 2 * estimator.settings.folds:
            data[f"{name}, matched"] = matched
        for label, side_data in data.items():
            try:
                estimates = measured(estimator, side_data)
            except UserCodeError:
                raise
            except UserError as error:
                comparison.refused[label] = str(error)
                continue
            if repeated_names := comparison.estimates.keys() & estimates.keys():
                description = described(type(estimator), KIND, "measure")
                raise UserCodeError(
                    f"{description}: '{min(repeated_names)}' is a metric of another estimator, too: rename it"
                )
            comparison.estimates.update(estimates)
    if not comparison.estimates:
        raise UserError("; ".join(comparison.refused.values()) or "no estimator was named")
    return comparison


def population_metrics(human: list[Dialogue], simulator: list[Dialogue], names: Sequence[str]) -> dict[str, Any]:
    """``compare_sets`` ready for JSON: ``figures``, the metrics by name, each with its verdict under ``reading``, and
    ``refused``, the reasons by estimator. The keys are those of stored runs."""
    sets = DialogueSets(human=human, simulator=simulator)
    if not names:
        return {"figures": {}, "refused": {}}
    try:
        comparison = compare_sets(sets, names, encoder=DEFAULT)
    except UserCodeError:
        raise
    except UserError as error:
        return {"figures": {}, "refused": {", ".join(names): str(error)}}
    metrics = {
        name: {**estimate.as_dict(), "reading": verdict(estimate)} for name, estimate in comparison.estimates.items()
    }
    return {"figures": metrics, "refused": comparison.refused}
