"""Align a simulator with human logs, without training a policy, and measure it before and after.

    python jobs/calibrate.py configs/dev.yaml [key=value ...]

Makes the models that the config names (with the policy's cold start, since a simulator is also judged by how it
behaves in dialogues with it), measures on held-out logs, and writes runs/NAME/simulator.json and the calibrated
simulator in Hugging Face format to runs/NAME/models/calibrated. What is there already is kept: jobs/compare.py with
the same config goes on from it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _command
from compare import parser_of

if TYPE_CHECKING:
    from calibrated_rl.config import RunConfig
    from calibrated_rl.progress import Progress

DECIDING = (
    "task", "human", "logs", "upbringing", "policy", "simulator", "calibration", "deterministic",
    "evaluation.logs", "evaluation.profile",
)  # fmt: skip
"""Where the names of settings begin that the simulator or its measurement depends on."""


def main() -> None:
    assert __doc__ is not None
    arguments = parser_of(__doc__).parse_intermixed_args()

    from calibrated_rl.config import load_config
    from calibrated_rl.progress import Progress

    load_config(arguments.config, arguments.overrides)  # mistakes come to light before anybody looks for devices
    overrides = [*_command.hardware(arguments.hardware), *arguments.overrides]
    config = load_config(arguments.config, overrides)
    folder, progress = Path(arguments.runs) / config.name, Progress()
    progress.say(f"run folder {folder}")
    check_same_settings(config, folder)
    file = folder / "simulator.json"
    if file.is_file():
        progress.say("the simulator was calibrated and measured before; it is kept")
    else:
        calibrate(config, folder, progress)
    print(table(json.loads(file.read_text())))
    print(f"calibrated simulator: {(folder / 'models' / 'calibrated').resolve()}")


def check_same_settings(config: "RunConfig", folder: Path) -> None:
    """Refuse a folder whose models were made with other settings.

    Raises:
        UserError: names the settings.
    """
    from calibrated_rl.config import load_config
    from calibrated_rl.errors import UserError
    from calibrated_rl.evaluation.saved_run import changed_settings

    file = folder / "config.yaml"
    if file.is_file():
        changed = [key for key in changed_settings(load_config(file), config) if key.startswith(DECIDING)]
        if changed:
            raise UserError(f"{folder} was made with another {', '.join(changed)}: take another name, name=...")


def calibrate(config: "RunConfig", folder: Path, progress: "Progress") -> None:
    """Start everything, measure, align, measure, stop everything."""
    from omegaconf import OmegaConf

    from calibrated_rl.algorithms.compare import measure_simulators, write_json
    from calibrated_rl.algorithms.parts import Parts

    folder.mkdir(parents=True, exist_ok=True)
    parts = Parts(config, folder, progress)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    _command.start_ray()
    parts.start()
    try:
        progress.say("measuring, aligning, measuring again")
        write_json(folder / "simulator.json", measure_simulators(parts))
    finally:
        parts.stop()
        progress.close()


def table(simulator: Mapping[str, Any]) -> str:
    """Before and after, with 95 % CIs, for people."""
    from calibrated_rl.report.text import SIMULATOR
    from calibrated_rl.report.values import interval, look_up, number

    def cell(when: str, name: str) -> str:
        value = interval(look_up(simulator, when, name))
        if value is None:
            return "–"
        bounds = "" if value.bounds is None else f" [{number(value.bounds[0])}, {number(value.bounds[1])}]"
        return number(value.mean) + bounds

    rows = [("simulator against human", "before calibration", "after")]
    rows += [(words, *(cell(when, name) for when in ("before", "after"))) for name, words in SIMULATOR.items()]
    rows = [row for row in rows if set(row[1:]) != {"–"}]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("Accuracy 0.5: a simulator's reply and a person's to the same history cannot be told apart.")
    if band := simulator.get("null_band"):
        lines.append(f"Two halves of the people's own words give {number(band['low'])} to {number(band['high'])}.")
    return "\n".join(lines)


if __name__ == "__main__":
    _command.run(main)
