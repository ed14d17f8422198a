"""Measures how far two sets of dialogues are apart; either may come from a live simulator of a run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrated_rl.api.settings import allowed
from calibrated_rl.components.short_names import short_names
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError
from calibrated_rl.run.machine import start_ray
from calibrated_rl.settings.fields import NotNegative, Positive, Seed
from calibrated_rl.shift import estimators as built_in
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.checked import check_names
from calibrated_rl.shift.compare_sets import Comparison, compare_sets
from calibrated_rl.shift.interface import DialogueSets, halve
from calibrated_rl.shift.sources import LogFiles, SourceDialogues, read_source, sample_dialogues
from calibrated_rl.shift.two_sample.sentence_encoder import DEFAULT, HASHING, model_folder
from calibrated_rl.shift.verdict import verdict

if TYPE_CHECKING:
    from calibrated_rl.evaluation.live_simulator import LiveComparison
    from calibrated_rl.runtime.progress import Progress

logger = logging.getLogger(__name__)

DialogueSource = str | Path | Sequence[Dialogue]
"""Dialogues, or the name of a set of them as on the command line (``shift/sources.py``)."""
DRAWS = 4
"""Default number of replies of a live simulator to each history."""


@dataclass(frozen=True, kw_only=True)
class ShiftResult:
    """Two sets of dialogues and estimates of how far they are apart."""

    reference: SourceDialogues
    compared: SourceDialogues
    estimates: dict[str, Estimate]
    """By name. Between ``null_low`` and ``null_high``, an estimate is explained by chance."""
    not_measured: dict[str, str]
    """Estimators for which there were too few data, with the reason."""
    matched_replies: int
    """Histories that both sides replied to; without any, no estimate is a per-turn shift, and none is a bound on
    one."""

    def verdict(self, name: str) -> str:
        """The estimate compared with its null band: ``apart``, ``unclear``, ``within the null band``, ``no null
        band`` or ``undefined``; ``shift/verdict.py`` says what that means."""
        return verdict(self.estimates[name])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; estimates that are NaN are None."""
        sources = {
            label: {"source": source.name, "dialogues": len(source.dialogues), "left_out": source.left_out}
            for label, source in (("reference", self.reference), ("compared", self.compared))
        }
        estimates = {name: {**value.as_dict(), "verdict": verdict(value)} for name, value in self.estimates.items()}
        return sources | {
            "matched_replies": self.matched_replies, "estimates": estimates, "not_measured": self.not_measured,
        }  # fmt: skip

    def table(self) -> str:
        """The estimates as lines of text, then the estimators without a result and why."""
        head = ("estimate", "value", "95 % interval", "null band", "verdict")
        rows = [head, *((name, *_numbers(value), verdict(value)) for name, value in self.estimates.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"not measured: {name}: {reason}" for name, reason in self.not_measured.items()]
        lines.append(
            f"{self.matched_replies} replies of both sides to the same histories"
            + ("" if self.matched_replies else ": no estimate here is a per-turn shift, and none is a bound on one")
        )
        return "\n".join(lines)


def _numbers(estimate: Estimate) -> tuple[str, str, str]:
    band = "-" if estimate.null_low is None else f"{estimate.null_low:.3f} .. {estimate.null_high:.3f}"
    return f"{estimate.value:.3f}", f"{estimate.low:.3f} .. {estimate.high:.3f}", band


def measure_shift(
    reference: DialogueSource,
    compared: DialogueSource | None = None,
    *,
    estimators: Sequence[str] | None = None,
    encoder: str = DEFAULT,
    limit: int = 0,
    seed: int = 0,
    null_halvings: int | None = None,
    draws: int | None = None,
    reader: LogFiles | None = None,
    changes: Sequence[str] = (),
) -> ShiftResult:
    """Compare two sets of dialogues.

    No engine is started unless a set is named ``RUN:MODEL``, a simulator of a run: that one replies to the human
    histories (two simulators: to those of the run's held-out logs) and talks with the policy that the run started from.

    Args:
        reference: as a rule human logs; null bands are drawn from it.
        compared: the other set; None: compare two random halves of ``reference``, which should not be told apart.
        estimators: modules of ``shift/estimators/``, or import paths of others; None: all of the package's.
        encoder: sentence encoder: a package, a folder or ``hashing``.
        limit: at most so many random dialogues of each set; 0: all.
        seed: of all random draws.
        null_halvings: random halvings of ``reference`` for the null bands; 0: no bands; None: each estimator's own
        number. draws: replies of a live simulator to each history; None: 4. reader: how to read files of other formats.
        changes: overrides of the runs of live simulators, as ``key=value``.

    Raises:
        UserError: a set cannot be used, there is no such estimator or encoder, or a number is out of range.
        PartLost: an engine died.
    """
    allowed("limit", NotNegative, limit)
    allowed("seed", Seed, seed)
    if null_halvings is not None:
        allowed("null_halvings", NotNegative, null_halvings)
    if draws is not None:
        allowed("draws", Positive, draws)
    if isinstance(estimators, str):
        raise UserError(f"estimators is '{estimators}': write a list, ['{estimators}']")
    names = list(short_names(built_in.__name__) if estimators is None else estimators)
    check_names(names)  # before engines start
    if not names:
        raise UserError(f"no estimator was named; there are {', '.join(short_names(built_in.__name__))}")
    if encoder not in (DEFAULT, HASHING):  # without the default one, estimators that need it are left out
        model_folder(encoder)
    from calibrated_rl.runtime.progress import Progress

    progress = Progress()
    live_result, source_pair = _live_or_read(reference, compared, draws, limit, seed, reader, changes, progress)
    for label, source in zip(("reference", "compared"), source_pair, strict=True):
        left_out = f", {source.left_out} records left out" if source.left_out else ""
        logger.info(f"{label}: {len(source.dialogues)} dialogues of {source.name}{left_out}")
    comparison: Comparison = compare_sets(
        DialogueSets(human=source_pair[0].dialogues, simulator=source_pair[1].dialogues),
        names,
        encoder=encoder,
        seed=seed,
        null_halvings=null_halvings,
        replies=None if live_result is None else live_result.replies,
        on_start=lambda name: logger.info(f"measuring: {name}"),
    )
    progress.close()
    return ShiftResult(
        reference=source_pair[0], compared=source_pair[1],
        estimates=comparison.estimates | ({} if live_result is None else live_result.estimates),
        not_measured=comparison.refused, matched_replies=comparison.matched,
    )  # fmt: skip


Sets = tuple[SourceDialogues, SourceDialogues]


def _live_or_read(
    reference_source: DialogueSource, compared_source: DialogueSource | None, draws: int | None, limit: int, seed: int,
    files: LogFiles | None, changes: Sequence[str], progress: "Progress",
) -> "tuple[LiveComparison | None, Sets]":  # fmt: skip
    """Both sets, cut down to ``limit``; with the result of live simulators, if there are any."""
    from calibrated_rl.evaluation.live_simulator import LiveSimulator, compare_live, live_name

    first_name, second_name = (
        live_name(str(name)) if isinstance(name, str | Path) else None for name in (reference_source, compared_source)
    )
    if second_name is None and (changes or draws):
        option = "another setting of a run" if changes else "a number of draws"
        raise UserError(f"{option} is for a live simulator, and neither set is one: RUN:MODEL")
    if first_name is not None and second_name is None:
        raise UserError("a live simulator is compared with another one, or is the second set: LOGS RUN:MODEL")
    changes = list(changes)
    reference = (
        _read("reference", reference_source, files)
        if first_name is None
        else LiveSimulator(*first_name, progress, changes)
    )
    if second_name is not None:
        second_simulator = LiveSimulator(*second_name, progress, changes)
        start_ray()
        live_result = compare_live(reference, second_simulator, draws=draws or DRAWS, limit=limit, seed=seed)
        return live_result, (live_result.reference, live_result.compared)
    assert isinstance(reference, SourceDialogues)
    if compared_source is not None:
        sets = reference, _read("compared", compared_source, files)
    else:
        halves = halve(reference.dialogues, len(reference.dialogues), np.random.default_rng((seed, 7)))
        first_half, second_half = (
            SourceDialogues(
                name=f"{reference.name}, {half_name} half", dialogues=half_dialogues, left_out=reference.left_out
            )
            for half_name, half_dialogues in zip(("one", "other"), halves, strict=True)
        )
        sets = first_half, second_half
    for source in sets:
        source.dialogues[:] = sample_dialogues(source.dialogues, limit, seed)
    return None, sets


def _read(label: str, source: DialogueSource, files: LogFiles | None) -> SourceDialogues:
    if isinstance(source, str | Path):
        return read_source(str(source), files)
    if not_dialogues := [dialogue for dialogue in source if not isinstance(dialogue, Dialogue)]:
        raise UserError(
            f"{label} contains a {type(not_dialogues[0]).__name__}: give dialogues, or the name of a set of them"
        )
    return SourceDialogues(name=label, dialogues=list(source))


def read_dialogues(source: str | Path, reader: LogFiles | None = None) -> list[Dialogue]:
    """The dialogues of a set by its name: a file of JSON Lines, the CaSiNo folder, a run folder (``runs/dev@ARM``).

    Args:
        reader: how to read files of other formats.

    Raises:
        UserError: there is no such set, it is of no known kind, or it has no usable dialogue.
    """
    return read_source(str(source), reader).dialogues
