"""The classifier two-sample test as an estimator, with any family; ``test.py`` has the formula and its source.

A family is a subclass, one file of ``shift/estimators/`` each, that says what is seen of a reply (``see``) and which
models are tried (``families``).

On ``MatchedReplies`` the metrics are the simulator-induced shift, and ``NAME_tv.low`` is a lower bound of the total
variation on the histories measured. On ``DialogueSets`` there is no common history: replies are scored *alone*, with
equally many of either side at each user turn, and the metrics are called ``NAME_unmatched_...``. Those also see
whatever the histories differ in (other topics, an earlier deviation), so they are no per-turn shift. The word
``tv`` is reserved for the first.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Range, Seed, check_settings
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.interface import DialogueSets, Estimator
from calibrated_rl.shift.sizes import FOLDS
from calibrated_rl.shift.two_sample.labelled import LabelledReplies, both_sides, replies_alone
from calibrated_rl.shift.two_sample.test import (
    Band,
    Fit,
    Floats,
    Rows,
    advantage,
    balanced,
    cross_fit,
    null_bands,
    refuse_too_few,
)


@dataclass(frozen=True, kw_only=True)
class FamilyConfig:
    """What all families share."""

    folds: Annotated[int, Range(at_least=2)] = FOLDS
    """Cross-fitting folds over dialogues."""
    null_halvings: NotNegative = 5
    """Random halvings of the human dialogues for the null band; 0 leaves it out."""
    seed: Seed = 0
    """Of all random draws."""


class ReplyTest(Estimator[MatchedReplies | DialogueSets]):
    """A family of classifiers as an estimator; see the module's docstring.

    ``measure`` returns ``NAME_accuracy`` (0.5 not told apart, 1 always), ``NAME_auc`` and, on matched replies,
    ``NAME_tv``; each by user turn but for the AUC.

    Raises:
        UserError: fewer than 2 folds, or a negative number of halvings.
    """

    name: ClassVar[str]

    def __init__(self, config: FamilyConfig) -> None:
        check_settings(config, self.name)
        self.settings = config

    @abstractmethod
    def see(self, data: LabelledReplies) -> tuple[Any, Floats]:
        """What is seen of each reply: ``Rows.text`` and ``Rows.dense``; see ``labelled.See``."""

    @abstractmethod
    def families(self) -> Mapping[str, Fit]:
        """The models to choose from, by name."""

    def measure(self, data: MatchedReplies | DialogueSets) -> dict[str, Estimate]:
        """
        Raises:
            UserError: too few dialogues to cross-fit, or the family needs what is not there.
        """
        if isinstance(data, MatchedReplies):
            return self.measure_replies(both_sides(data), self.name, matched=True, tv=True)
        data.require_both(self.name)
        return self.measure_replies(replies_alone(data), f"{self.name}_unmatched", matched=False, tv=False)

    def measure_replies(self, replies: LabelledReplies, prefix: str, *, matched: bool, tv: bool) -> dict[str, Estimate]:
        """``PREFIX_accuracy`` and ``PREFIX_auc``.

        Args:
            matched: both sides have a reply to every history; else both are cut down to equally many at each turn.
            tv: also ``PREFIX_tv``, ``max(0, 2a - 1)``.

        Raises:
            UserError: as ``measure``.
        """
        users: tuple[set[str], set[str]] = (set(), set())
        for user, label in zip(replies.user, replies.label, strict=True):
            users[label].add(user)
        if not all(users):
            raise UserError(f"{prefix}: there are no user turns to compare: one side never speaks")
        for side in users:
            refuse_too_few(len(side), self.settings.folds)
        all_rows = replies.rows(self.see)
        rows = all_rows if matched else all_rows.select(balanced(all_rows.label, all_rows.turn, self.settings.seed))
        result = cross_fit(rows, self.families(), folds=self.settings.folds, seed=self.settings.seed)
        accuracy, auc = result.accuracy, result.auc
        if self.settings.null_halvings and len(users[0]) // 2 >= 2 * self.settings.folds:
            bands = self._null_bands(all_rows, None if matched else len(users[1]))
            accuracy, auc = (
                replace(estimate, null_low=low, null_high=high)
                for estimate, (low, high) in zip((accuracy, auc), bands, strict=True)
            )
        family_note = (f"families chosen: {', '.join(result.families)}",)
        estimates = {f"{prefix}_accuracy": replace(accuracy, notes=family_note), f"{prefix}_auc": auc}
        if tv:
            estimates[f"{prefix}_tv"] = advantage(accuracy)
        return {name: replace(estimate, name=name) for name, estimate in estimates.items()}

    def _null_bands(self, all_rows: Rows, n_simulator: int | None) -> tuple[Band, Band]:
        human = all_rows.select(all_rows.label == 0).renumbered()
        s = self.settings
        return null_bands(
            human, self.families(), folds=s.folds, seed=s.seed, halvings=s.null_halvings, max_dialogues=n_simulator
        )
