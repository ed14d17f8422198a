"""How far apart are two sets of dialogues? No model and no Ray is needed.

    python jobs/measure_shift.py PEOPLE OTHERS [--estimators words,mauve] [--out FILE] [--limit N] [--seed N]
    python jobs/measure_shift.py PEOPLE            two random halves of one set, which should not be told apart

A set is a file of JSON Lines (calibrated_rl/logs/jsonl.py), the CaSiNo folder, or a run folder, with @ARM for the
dialogues of one arm: runs/dev@calibrated. The first set is the reference: null bands are drawn from it. What each
figure means, and which may be called a bound, is in docs/shift.md. Exit code 2: a set cannot be used.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _command

if TYPE_CHECKING:
    from calibrated_rl.shift.base import Estimate
    from calibrated_rl.shift.compare_sets import Comparison
    from calibrated_rl.shift.sources import SourceDialogues


def parser_of() -> argparse.ArgumentParser:
    from calibrated_rl.shift.compare_sets import ESTIMATORS
    from calibrated_rl.shift.encoder import DEFAULT

    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="jobs/measure_shift.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("people", metavar="PEOPLE", help="the reference set, as a rule human logs")
    parser.add_argument("others", metavar="OTHERS", nargs="?", help="the set to compare (default: halve PEOPLE)")
    parser.add_argument(
        "--estimators", default=",".join(ESTIMATORS), metavar="NAMES", help="some of %(default)s (default: all)"
    )
    parser.add_argument(
        "--encoder", default=DEFAULT, help="sentence encoder: a package, a folder or 'hashing' (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="at most N random dialogues of each set")
    parser.add_argument("--seed", type=int, default=0, help="of all random draws (default: 0)")
    parser.add_argument(
        "--null-halvings", type=int, metavar="N", help="random halvings of PEOPLE for the null bands; 0: no bands"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures, by turn too, as JSON")
    return parser


def read(arguments: argparse.Namespace) -> "tuple[SourceDialogues, SourceDialogues]":
    """Both sets, cut down to ``--limit``.

    Raises:
        UserError: a set cannot be used, or the limit or the seed is negative.
    """
    import numpy as np

    from calibrated_rl.errors import UserError
    from calibrated_rl.shift.interface import halve
    from calibrated_rl.shift.sources import SourceDialogues, read_source, some

    if min(arguments.limit, arguments.seed) < 0:
        raise UserError("--limit and --seed must not be negative")
    people = read_source(arguments.people)
    if arguments.others is not None:
        others = read_source(arguments.others)
    else:
        halves = halve(people.dialogues, len(people.dialogues), np.random.default_rng((arguments.seed, 7)))
        people, others = (
            SourceDialogues(name=f"{people.name}, {which} half", dialogues=half, left_out=people.left_out)
            for which, half in zip(("one", "other"), halves, strict=True)
        )
    for source in (people, others):
        source.dialogues[:] = some(source.dialogues, arguments.limit, arguments.seed)
    return people, others


def main() -> None:
    arguments = parser_of().parse_args()
    from calibrated_rl.files import write_json
    from calibrated_rl.progress import Progress
    from calibrated_rl.shift.compare_sets import compare_sets
    from calibrated_rl.shift.interface import DialogueSets

    progress = Progress()
    people, others = read(arguments)
    sets = DialogueSets(human=people.dialogues, simulator=others.dialogues)
    for label, source in (("people", people), ("others", others)):
        left_out = f", {source.left_out} records left out" if source.left_out else ""
        progress.say(f"{label}: {len(source.dialogues)} dialogues of {source.name}{left_out}")
    names = [name.strip() for name in arguments.estimators.split(",") if name.strip()]
    found = compare_sets(
        sets,
        names,
        encoder=arguments.encoder,
        seed=arguments.seed,
        null_halvings=arguments.null_halvings,
        on_start=lambda name: progress.say(f"measuring: {name}"),
    )
    if arguments.out is not None:
        write_json(arguments.out, as_dict(arguments, people, others, found))
    print(table(found))
    if arguments.out is not None:
        print(f"all figures, by turn too: {arguments.out.resolve()}")


def as_dict(
    arguments: argparse.Namespace, people: "SourceDialogues", others: "SourceDialogues", found: "Comparison"
) -> dict[str, Any]:
    """What ``--out`` holds; figures that are no number are null."""
    from calibrated_rl.shift.reading import reading

    sources = {
        label: {"source": source.name, "dialogues": len(source.dialogues), "left_out": source.left_out}
        for label, source in (("people", people), ("others", others))
    }
    figures = {name: {**figure.as_dict(), "reading": reading(figure)} for name, figure in found.figures.items()}
    told = {"seed": arguments.seed, "limit": arguments.limit, "encoder": arguments.encoder}
    return sources | told | {"matched_replies": found.matched, "figures": figures, "not_measured": found.refused}


def table(found: "Comparison") -> str:
    """The figures as lines of text, then what was not measured and why."""
    from calibrated_rl.shift.reading import reading

    head = ("figure", "value", "95 % interval", "null band", "reading")
    rows = [head, *((name, *_numbers(figure), reading(figure)) for name, figure in found.figures.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"not measured: {name}: {why}" for name, why in found.refused.items()]
    lines.append(
        f"{found.matched} replies of both sides to the same histories"
        + ("" if found.matched else ": no figure here is a per-turn shift, and none is a bound on one")
    )
    return "\n".join(lines)


def _numbers(figure: "Estimate") -> tuple[str, str, str]:
    band = "-" if figure.null_low is None else f"{figure.null_low:.3f} .. {figure.null_high:.3f}"
    return f"{figure.value:.3f}", f"{figure.low:.3f} .. {figure.high:.3f}", band


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _command.run(main)
