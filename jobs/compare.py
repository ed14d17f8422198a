"""Train the arms of a config side by side and compare them on held-out people.

    python jobs/compare.py configs/dev.yaml [key=value ...]

Writes runs/NAME/ and goes on where it stopped. Prints the table of the arms and the path of the report.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _command

if TYPE_CHECKING:
    from calibrated_rl.config import RunConfig
    from calibrated_rl.progress import Progress


def parser_of(description: str) -> argparse.ArgumentParser:
    """What all jobs that run a config understand."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace settings, e.g. seeds=[0,1]")
    parser.add_argument(
        "--hardware", choices=("auto", "cpu", "one_gpu", "cluster"), default="auto",
        help="which of configs/hardware to lay over the config (default: found on this machine or cluster)",
    )  # fmt: skip
    parser.add_argument("--runs", default="runs", help="folder of all runs (default: runs)")
    return parser


MAY_CHANGE = (
    "arms", "seeds", "control_", "variants", "label", "policy.replicas", "simulator.replicas",
    *(f"{role}.engine.{key}" for role in ("policy", "simulator", "proxy") for key in (
        "max_num_seqs", "kv_cache_mib", "threads", "eager", "num_cpus", "num_gpus",
    )),
    *(f"learner.{key}" for key in (
        "ranks", "zero_stage", "row_tokens", "max_rows", "gradient_checkpointing", "threads", "cpus", "gpus", "timeout",
    )),
)  # fmt: skip
"""Settings that a run may go on with changed: what is still to do, and on what it runs."""


def execute(config_file: str, overrides: list[str], runs: str, hardware: str, side_experiments: bool = True) -> None:
    """Run the arms of the config, then its variants; print the table."""
    from calibrated_rl.algorithms.compare import add_variants
    from calibrated_rl.config import load_config, variants_of
    from calibrated_rl.progress import Progress
    from calibrated_rl.report.text import table

    load_config(config_file, overrides)  # mistakes come to light before anybody looks for devices
    overrides = [*_command.hardware(hardware), *overrides]
    config = load_config(config_file, overrides)
    variants = variants_of(config, config_file, overrides) if side_experiments else {}
    progress, folder = Progress(), Path(runs) / config.name
    summary = run(config, folder, progress)
    for name, variant in variants.items():
        progress.say(f"variant {name}: {' '.join(config.variants[name].change)}")
        run(variant, Path(runs) / variant.name, progress, start_of=folder)
    if variants:
        summary = add_variants(config, folder, {name: Path(runs) / v.name for name, v in variants.items()})
    print(table(summary))
    print(f"report: {(folder / 'report.html').resolve()}")


def run(config: "RunConfig", folder: Path, progress: "Progress", start_of: Path | None = None) -> dict[str, Any]:
    """Start everything, run what is missing of the arms of ``config``, stop everything; the summary."""
    from omegaconf import OmegaConf

    from calibrated_rl.algorithms.compare import compare, is_done
    from calibrated_rl.algorithms.parts import Parts
    from calibrated_rl.config import load_config
    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.saved_run import changed_settings

    progress.say(f"run folder {folder}")
    if (folder / "config.yaml").is_file():
        changed = changed_settings(load_config(folder / "config.yaml"), config)
        if deciding := [key for key in changed if not key.startswith(MAY_CHANGE)]:
            raise UserError(
                f"{folder} was begun with other settings ({', '.join(deciding)}): give the run another "
                "name, or remove the folder"
            )
    if is_done(config, folder):
        progress.say("every arm is there already; the summary and the report are kept")
        return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]
    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(config, folder, progress, start_of)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    _command.start_ray()
    parts.start()
    try:
        return compare(config, parts)
    finally:
        parts.stop()
        progress.close()


def main() -> None:
    assert __doc__ is not None
    arguments = parser_of(__doc__).parse_intermixed_args()
    execute(arguments.config, arguments.overrides, arguments.runs, arguments.hardware)


if __name__ == "__main__":
    _command.run(main)
