"""How far two sets of dialogues are apart, one or both of which may be what a run's simulator says."""

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
"""Replies of a live simulator to each history, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class ShiftResult:
    """Two sets of dialogues and the figures that tell how far they are apart."""

    people: SourceDialogues
    """The reference."""
    others: SourceDialogues
    figures: dict[str, Estimate]
    """By name. A figure's ``null_low`` and ``null_high`` are where chance alone takes it."""
    not_measured: dict[str, str]
    """Estimators that the data were not enough for, and why."""
    matched_replies: int
    """Histories that both sides replied to; without any, no figure is a per-turn shift, and none is a bound on one."""

    def reading(self, figure: str) -> str:
        """How to read the figure beside its null band: ``apart``, ``unclear``, ``within the null band``, ``no null
        band`` or ``undefined``; ``shift/verdict.py`` says what that means."""
        return verdict(self.figures[figure])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; figures that are no number are None."""
        sources = {
            label: {"source": source.name, "dialogues": len(source.dialogues), "left_out": source.left_out}
            for label, source in (("people", self.people), ("others", self.others))
        }
        figures = {name: {**figure.as_dict(), "reading": verdict(figure)} for name, figure in self.figures.items()}
        return sources | {
            "matched_replies": self.matched_replies, "figures": figures, "not_measured": self.not_measured,
        }  # fmt: skip

    def table(self) -> str:
        """The figures as lines of text, then what was not measured and why."""
        head = ("figure", "value", "95 % interval", "null band", "reading")
        rows = [head, *((name, *_numbers(figure), verdict(figure)) for name, figure in self.figures.items())]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines += [f"not measured: {name}: {why}" for name, why in self.not_measured.items()]
        lines.append(
            f"{self.matched_replies} replies of both sides to the same histories"
            + ("" if self.matched_replies else ": no figure here is a per-turn shift, and none is a bound on one")
        )
        return "\n".join(lines)


def _numbers(figure: Estimate) -> tuple[str, str, str]:
    band = "-" if figure.null_low is None else f"{figure.null_low:.3f} .. {figure.null_high:.3f}"
    return f"{figure.value:.3f}", f"{figure.low:.3f} .. {figure.high:.3f}", band


def measure_shift(
    people: DialogueSource,
    others: DialogueSource | None = None,
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

    No engine is started unless a set is named ``RUN:MODEL``, a simulator of a run: that one replies to the people's
    histories (two simulators: to those of the run's held-out logs) and talks with the policy that the run started from.

    Args:
        people: the reference, as a rule human logs; null bands are drawn from it.
        others: what it is compared with; None: two random halves of ``people``, which should not be told apart.
        estimators: modules of ``shift/estimators/``, or import paths of others; None: all of the package's.
        encoder: sentence encoder: a package, a folder or ``hashing``.
        limit: at most so many random dialogues of each set; 0: all.
        seed: of all random draws.
        null_halvings: random halvings of ``people`` for the null bands; 0: no bands; None: each estimator's own number.
        draws: replies of a live simulator to each history; None: 4.
        reader: how files are read that are of no kind that is known here.
        changes: settings of the runs of live simulators that are to be others, as ``key=value``.

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
    if encoder not in (DEFAULT, HASHING):  # without the default one, what needs it is left out
        model_folder(encoder)
    from calibrated_rl.runtime.progress import Progress

    progress = Progress()
    asked, sets = _asked_or_read(people, others, draws, limit, seed, reader, changes, progress)
    for label, source in zip(("people", "others"), sets, strict=True):
        left_out = f", {source.left_out} records left out" if source.left_out else ""
        logger.info(f"{label}: {len(source.dialogues)} dialogues of {source.name}{left_out}")
    found: Comparison = compare_sets(
        DialogueSets(human=sets[0].dialogues, simulator=sets[1].dialogues),
        names,
        encoder=encoder,
        seed=seed,
        null_halvings=null_halvings,
        replies=None if asked is None else asked.replies,
        on_start=lambda name: logger.info(f"measuring: {name}"),
    )
    progress.close()
    return ShiftResult(
        people=sets[0], others=sets[1], figures=found.estimates | ({} if asked is None else asked.estimates),
        not_measured=found.refused, matched_replies=found.matched,
    )  # fmt: skip


Sets = tuple[SourceDialogues, SourceDialogues]


def _asked_or_read(
    people: DialogueSource, others: DialogueSource | None, draws: int | None, limit: int, seed: int,
    files: LogFiles | None, changes: Sequence[str], progress: "Progress",
) -> "tuple[LiveComparison | None, Sets]":  # fmt: skip
    """Both sets, cut down to ``limit``; live simulators have spoken, and what they said comes with them."""
    from calibrated_rl.evaluation.live_simulator import LiveSimulator, compare_live, live_name

    first, second = (live_name(str(name)) if isinstance(name, str | Path) else None for name in (people, others))
    if second is None and (changes or draws):
        what = "another setting of a run" if changes else "a number of draws"
        raise UserError(f"{what} is for a live simulator, and neither set is one: RUN:MODEL")
    if first is not None and second is None:
        raise UserError("a live simulator is compared with another one, or stands second: LOGS RUN:MODEL")
    changes = list(changes)
    reference = _read("people", people, files) if first is None else LiveSimulator(*first, progress, changes)
    if second is not None:
        compared = LiveSimulator(*second, progress, changes)
        start_ray()
        asked = compare_live(reference, compared, draws=draws or DRAWS, limit=limit, seed=seed)
        return asked, (asked.reference, asked.compared)
    assert isinstance(reference, SourceDialogues)
    if others is not None:
        sets = reference, _read("others", others, files)
    else:
        halves = halve(reference.dialogues, len(reference.dialogues), np.random.default_rng((seed, 7)))
        one, other = (
            SourceDialogues(name=f"{reference.name}, {which} half", dialogues=half, left_out=reference.left_out)
            for which, half in zip(("one", "other"), halves, strict=True)
        )
        sets = one, other
    for source in sets:
        source.dialogues[:] = sample_dialogues(source.dialogues, limit, seed)
    return None, sets


def _read(label: str, source: DialogueSource, files: LogFiles | None) -> SourceDialogues:
    if isinstance(source, str | Path):
        return read_source(str(source), files)
    if wrong := [each for each in source if not isinstance(each, Dialogue)]:
        raise UserError(f"{label} holds a {type(wrong[0]).__name__}: give dialogues, or the name of a set of them")
    return SourceDialogues(name=label, dialogues=list(source))


def read_dialogues(source: str | Path, reader: LogFiles | None = None) -> list[Dialogue]:
    """The dialogues of a set by its name: a file of JSON Lines, the CaSiNo folder, a run folder (``runs/dev@ARM``).

    Args:
        reader: how files are read that are of no kind that is known here.

    Raises:
        UserError: there is no such set, it is of no known kind, or it holds no usable dialogue.
    """
    return read_source(str(source), reader).dialogues
