"""Train the arms of a config side by side and compare them on held-out people.

    python jobs/compare.py configs/dev.yaml [key=value ...]

Writes runs/NAME/ and goes on where it stopped. Prints the table of the arms and the path of the report.
"""

import argparse
import time
from pathlib import Path

import _command


def parser_of(description: str) -> argparse.ArgumentParser:
    """What all jobs that run a config understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace settings, e.g. seeds=[0,1]")
    parser.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")
    return parser


def execute(config_file: str, overrides: list[str], runs: str) -> None:
    """Start everything, run the arms of the config, print the table."""
    from omegaconf import OmegaConf

    from calibrated_rl.algorithms.compare import compare
    from calibrated_rl.algorithms.parts import Parts
    from calibrated_rl.config import load_config
    from calibrated_rl.report.text import table

    config = load_config(config_file, overrides)
    _command.check_memory(4.0)
    folder = Path(runs) / config.name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    say(f"run folder {folder}")
    parts = Parts(config, folder, say)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    _command.start_ray()
    parts.start()
    try:
        summary = compare(config, parts)
    finally:
        parts.stop()
    print(table(summary))
    print(f"report: {(folder / 'report.html').resolve()}")


def main() -> None:
    assert __doc__ is not None
    arguments = parser_of(__doc__).parse_intermixed_args()
    execute(arguments.config, arguments.overrides, arguments.runs)


if __name__ == "__main__":
    _command.run(main)
