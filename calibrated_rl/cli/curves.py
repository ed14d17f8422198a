"""Draw one metric of several runs over training, side by side.

    python jobs/curves.py runs/a runs/b --out curves.png
    python jobs/curves.py "in turn=runs/a" "ahead=runs/b:interactive-0" --metric success --against updates --out out.png

A run is a folder below which arms have finished, with the arm and seed behind a colon where there are several, and a
name of your choice before an equals sign. --against seconds (the default) counts the time that updates took, measuring
included. Also prints the mean of the last third of each line. Exit code 2: there is no such run, arm or metric.
"""

from calibrated_rl.cli import command
from calibrated_rl.runtime import console


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN[:ARM-SEED]")
    parser.add_argument("--metric", default="reward", help="(default: reward)")
    parser.add_argument("--against", choices=("seconds", "updates"), default="seconds", help="(default: seconds)")
    parser.add_argument("--out", type=command.picture, required=True, metavar="FILE", help="PNG, SVG or PDF")
    arguments = parser.parse_args()

    from calibrated_rl.report.curve_files import lines_of
    from calibrated_rl.report.plots.curves import lines
    from calibrated_rl.report.plots.drawing import plot_style

    lines_by_name = lines_of(arguments.runs, arguments.metric, arguments.against)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with plot_style():
        lines(lines_by_name, arguments.metric, arguments.against).savefig(arguments.out, dpi=150)
    width = max(map(len, lines_by_name))
    for name, line in lines_by_name.items():
        late = line.values[-max(1, len(line.values) // 3) :]
        summary = f"{late.mean():+.3f} in the last third, {line.at[-1]:.0f} {arguments.against} in all"
        console.result(f"{name:<{width}}  {summary}")
    console.result(f"picture: {arguments.out.resolve()}")
    return 0
