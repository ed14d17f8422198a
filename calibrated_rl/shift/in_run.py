"""One measurement during a run, from data to metrics: both shifts by turn, the bound or index, and exploitation.

Already decided when ``shift_record`` is called: whose replies on which histories (``Collected``). It needs neither
engines nor Ray, so that it can run beside training.

- ``policy``: policy-induced shift by policy turn on logged histories (``probabilities/policy_shift.py``), from turns of
  the current policy, against the policy that training started from: a clone of the logged one, which stands for it.
- ``simulator``: simulator-induced shift by user turn. Where the human is a program it is exact
  (``probabilities/exact.py``), and ``simulator_estimated`` is what the classifier on words finds on the same replies;
  else the classifier's is all.
- ``history_shift``: the accumulated distance of whole histories; never part of a bound.
- ``bound`` (program) or ``shift_index`` (otherwise): with one terminal reward of range ``R``
  ``|J_real - J_train| <= R * sum_t delta_t``, with rewards of range ``r`` after each turn ``r * sum_t (H - t + 1)
  delta_t``, with both their sum (``stakes.py``); ``rewards`` says which. A dialogue that is over before turn ``t`` adds
  nothing: ``sum_t delta_t = E[sum of the TVs of the turns that a dialogue has]``. ``early`` and ``late`` are its parts
  up to and after the middle turn. Every metric is on histories of the current policy with the human where it is a
  program (then the bound holds for this policy, up to sampling), else on logged ones.
- ``human_turns``: how many replies of humans it took.
- ``exploitation``: mean return with the simulator minus mean return with the human, on the same scenarios. ``outcomes``
  has what both paid, by scenario, for ``transfer.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError, first_line
from calibrated_rl.shift.base import Estimate, MatchedReplies
from calibrated_rl.shift.estimators.history import HistoryShift
from calibrated_rl.shift.estimators.words import WordsTest
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.probabilities.exact import exact_shift
from calibrated_rl.shift.probabilities.policy_shift import PolicyLogProbs, PolicyShift
from calibrated_rl.shift.stakes import Stakes
from calibrated_rl.statistics.intervals import Scores, paired_difference, ratio_interval

T = TypeVar("T")
METRICS = (
    "policy", "simulator", "simulator_estimated", "history_shift", "bound", "shift_index", "exploitation",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExactReplies:
    """Log-probs in nats of human replies, one entry a reply [N]."""

    human: Sequence[float]
    simulator: Sequence[float]
    turn: Sequence[int]
    """User turns from 1."""
    dialogue: Sequence[str]

    def shift(self) -> dict[str, Estimate]:
        """``tv`` and ``kl`` of ``probabilities/exact.py``; raises as ``exact_shift``."""
        return exact_shift(self.human, self.simulator, turn=self.turn, dialogue=list(self.dialogue))


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Inputs of one measurement; None where the arm has no such data."""

    update: int
    """Policy updates so far."""
    policy: PolicyLogProbs | None
    replies: MatchedReplies | None
    """Replies of the human and of the simulator that the arm trains with."""
    exact: ExactReplies | None
    """The same human replies, where the human is a program."""
    histories: DialogueSets | None
    """Logs, and dialogues of the current policy with the arm's user."""
    with_simulator: Scores | None
    """Return by scenario."""
    with_humans: Scores | None
    success_with_simulator: Scores | None = None
    """0 or 1 by scenario."""
    success_with_humans: Scores | None = None
    human_turns: int = 0
    """Replies that humans gave for this measurement; logged ones were there before."""
    stakes: Stakes | str | None
    """What user turns can cost or bring; why that is not known; None where the task does not tell."""


def shift_record(data: Collected, null_halvings: int = 0) -> dict[str, Any]:
    """The metrics of the module's docstring by name, ready for JSON; None for what could not be measured.

    What an estimator refuses (too few dialogues) is no reason to lose the rest: ``refused`` says why, by estimator.

    Args:
        null_halvings: for the classifier's null band; 0 leaves it out.
    """
    defaults: dict[str, Any] = {
        "update": data.update, "null_band": None, "refused": {}, "outcomes": None, "human_turns": data.human_turns,
    }  # fmt: skip
    record: dict[str, Any] = dict.fromkeys(METRICS) | defaults

    def measured(name: str, measure: Callable[[], T]) -> T | None:
        """The result of ``measure``; None if these data do not allow it, with the reason in ``refused[name]``."""
        try:
            return measure()
        except (UserError, ValueError) as error:
            record["refused"][name] = first_line(error)
            return None

    stakes = data.stakes if isinstance(data.stakes, Stakes) else None
    if isinstance(data.stakes, str):
        record["refused"]["bound"] = data.stakes
    if (policy := data.policy) is not None:
        estimate = measured("policy_tv", lambda: PolicyShift().measure(policy)["policy_tv"])
        record["policy"] = None if estimate is None else _report_fields(estimate)
    if (replies := data.replies) is not None:
        words = WordsTest(WordsTest.Config(null_halvings=null_halvings))
        estimates = measured("words_tv", lambda: words.measure(replies))
        if estimates is not None:
            tv = estimates["words_tv"]
            record["simulator"] = record["simulator_estimated"] = _report_fields(tv)
            if tv.null_low is not None:
                record["null_band"] = [tv.null_low, tv.null_high]
            if data.exact is None and stakes is not None:
                n_dialogues = len(set(replies.dialogue))
                record["shift_index"] = index_of(estimates["words_accuracy"], n_dialogues, stakes)
    if (exact := data.exact) is not None:
        estimate = measured("exact_tv", lambda: exact.shift()["tv"])
        # What a classifier finds never stands where the exact metric is meant to.
        record["simulator"] = None if estimate is None else _report_fields(estimate)
        if stakes is not None and estimate is not None:
            record["bound"] = bound_of(exact, stakes)
    if (histories := data.histories) is not None:
        history = HistoryShift(HistoryShift.Config(null_halvings=null_halvings))
        estimate = measured("history_shift_tv", lambda: history.measure(histories)["history_shift_tv"])
        record["history_shift"] = None if estimate is None else _report_fields(estimate)
    if (simulator := data.with_simulator) is not None and (human := data.with_humans) is not None:
        difference = measured("exploitation", lambda: paired_difference(simulator, human).as_dict())
        record["exploitation"] = difference
        record["outcomes"] = {
            "simulator_reward": dict(simulator), "human_reward": dict(human),
            "simulator_success": dict(data.success_with_simulator or {}),
            "human_success": dict(data.success_with_humans or {}),
        }  # fmt: skip
    return record


def bound_of(replies: ExactReplies, stakes: Stakes) -> dict[str, Any]:
    """``E[sum of the TVs of a dialogue, times what is at stake]``, its 95 % interval over dialogues, its ``early`` and
    ``late`` parts."""
    log_p, log_q = np.asarray(replies.human, np.float64), np.asarray(replies.simulator, np.float64)
    tv = -np.expm1(np.minimum(log_q - log_p, 0.0))
    turn = np.asarray(replies.turn)
    at_stake = stakes.of(turn) * tv
    # Each dialogue counts once, at its first reply.
    first = turn == 1
    interval = ratio_interval(at_stake, first.astype(np.float64), list(replies.dialogue))
    return interval.as_dict() | _halves(turn, at_stake / first.sum()) | {"rewards": stakes.case}


def index_of(accuracy: Estimate, dialogues: int, stakes: Stakes) -> dict[str, Any]:
    """The same sum with the classifier's ``2a - 1`` in place of the total variations; bounds nothing.

    Turn by turn it may be negative: cut off at 0, chance alone would make the sum positive. ``null_band``, where the
    classifier has one, is what the sum would be with the band's limits in every turn.
    """
    turn = np.array([t.turn for t in accuracy.by_turn])
    stakes_R = stakes.of(turn) * np.array([t.count / dialogues for t in accuracy.by_turn])
    terms_R = stakes_R * (2 * np.array([t.value for t in accuracy.by_turn]) - 1)
    index: dict[str, Any] = {"mean": float(terms_R.sum())} | _halves(turn, terms_R) | {"rewards": stakes.case}
    if accuracy.null_low is not None and accuracy.null_high is not None:
        limits = (accuracy.null_low, accuracy.null_high)
        index["null_band"] = [(2 * limit - 1) * float(stakes_R.sum()) for limit in limits]
    return index


def _halves(turn: NDArray[Any], terms: NDArray[np.float64]) -> dict[str, float]:
    early = turn <= (turn.max() + 1) // 2
    return {"early": float(terms[early].sum()), "late": float(terms[~early].sum())}


def _report_fields(estimate: Estimate) -> dict[str, Any]:
    """The estimate overall and by turn, in the fields that the report reads."""
    fields = dict(estimate.as_dict())
    band = {} if fields["null_band"] is None else {"null_band": fields["null_band"]}
    return {key: fields[key] for key in ("mean", "low", "high", "by_turn", "notes")} | band
