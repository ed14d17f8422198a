"""Measure how far each part of the system is from its limit on this machine.

    python jobs/benchmark.py --cpu
    python jobs/benchmark.py --gpu --only "weight sync" --out sync.json

Measures the rows of configs/benchmarks/cpu.yaml (or gpu.yaml) one after the other, each beside its limit in a process
of its own, prints them as a table and writes FILE. The machine should do nothing else meanwhile. Exit code 1: a goal
was missed; 2: a wrong argument. A row that this machine cannot measure is reported as such and counts as neither.
"""

import argparse
import json
import sys
from pathlib import Path

from calibrated_rl.cli import command
from calibrated_rl.runtime import console


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    device_options = parser.add_mutually_exclusive_group(required=True)
    device_options.add_argument(
        "--cpu", action="store_const", dest="kind", const="cpu", help="rows for a machine without GPU"
    )
    device_options.add_argument("--gpu", action="store_const", dest="kind", const="gpu", help="rows for one GPU")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this row alone; may be repeated")
    parser.add_argument(
        "--out", type=command.result_file(), default=Path("benchmarks.json"), metavar="FILE",
        help="(default: benchmarks.json)",
    )  # fmt: skip
    parser.add_argument("--row", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from calibrated_rl.storage.files import write_json
    from tools.bench.table import choose, machine, measure, read_rows, run_all, table

    file = Path(__file__).resolve().parents[2] / "configs" / "benchmarks" / f"{arguments.kind}.yaml"
    rows = read_rows(file)
    if arguments.row is not None:  # this is the process of one row
        (row,) = choose(rows, [arguments.row], file).values()
        print(json.dumps(measure(row, f"{file}, row '{arguments.row}'")))
        return 0
    measure_row = [sys.executable, "-m", "jobs.benchmark", f"--{arguments.kind}", "--row"]
    results = run_all(choose(rows, arguments.only, file), measure_row)
    write_json(arguments.out, {"machine": machine(), "rows": results})
    console.result(table(results))
    console.result(f"results: {arguments.out.resolve()}")
    return 1 if any(row["met"] is False for row in results) else 0
