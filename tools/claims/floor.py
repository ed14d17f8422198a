"""How near a simulator comes to the people by calibration, against the number of logs and the size of its model.

    python jobs/floor.py configs/frontdesk_study.yaml --out docs/results/floor.json [key=value ...]

For each size of the tiny model and each number of logs: pretraining on the config's other population, as a run does it,
then plain SFT on logs of the calibration split, early stopping on the monitor split, and on held-out people's replies
the exact total variation from the people (E_human[(1 - q/p)+], which needs a human that is a program). What is left
with the most logs is the floor of that model. No engine is started. Points that FILE has already are kept: the same
command resumes. With --picture the points are drawn.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.cli.compare import parser_of
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig
    from calibrated_rl.data.dialogue import Dialogue
    from calibrated_rl.run.inputs import RunInputs

logger = logging.getLogger(__name__)
LOGS = (500, 1000, 2000, 4000, 8000, 16_000)


SIZES = {
    "1.3M": {"hidden": 192, "layers": 2, "heads": 6, "intermediate": 768},
    "5M": {"hidden": 320, "layers": 4, "heads": 10, "intermediate": 1280},
}
"""Settings of the tiny model (``TinyConfig``) by the name of its size."""
BEARS_ON_POINTS = ("task", "task_config", "human", "human_config", "logs", "pretraining", "learner")
"""Sections of the config; of others single settings."""


def numbers(text: str) -> list[int]:
    """``500,1000`` as numbers above 0."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers above 0, e.g. 500,1000")
    return found


def sizes(text: str) -> list[str]:
    """Names of ``SIZES``."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SIZES]:
        raise argparse.ArgumentTypeError(f"there is no size '{unknown[0]}'; there are {', '.join(SIZES)}")
    return names


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=command.result_file(), required=True, metavar="FILE", help="JSON of all points")
    parser.add_argument(
        "--counts", type=numbers, default=list(LOGS), metavar="N,N", help=f"logs (default: {','.join(map(str, LOGS))})"
    )
    parser.add_argument(
        "--sizes", type=sizes, default=list(SIZES), metavar="NAME,NAME", help=f"default: {','.join(SIZES)}"
    )
    parser.add_argument("--picture", type=command.picture, metavar="FILE", help="draw the points, e.g. floor.png")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.api.settings import load_config, settings_to_run
    from calibrated_rl.config.endpoint_checks import refuse_endpoint_simulator

    if not load_config(arguments.config, arguments.overrides).human:
        raise UserError("the exact total variation needs a human that is a program: set 'human'")
    most = f"logs.calibration={max(arguments.counts)}"
    overrides = [*arguments.overrides, most, "control_arms=[]", "calibration.reserve=0", "simulator.model=tiny"]
    config = settings_to_run(arguments.config, overrides, arguments.hardware, side_experiments=False).config
    refuse_endpoint_simulator(config, "to be aligned")
    points = measure(config, arguments.sizes, arguments.counts, arguments.out)
    console.result(table(points))
    if arguments.picture is not None:
        draw(points, arguments.picture)
        console.result(f"picture: {arguments.picture.resolve()}")
    return 0


def measure(config: "RunConfig", names: Sequence[str], counts: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """All points in ``out`` and those that it lacks, which are added to it one by one."""
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import read_json, write_json

    plain = asdict(config)
    settings = {name: plain[name] for name in BEARS_ON_POINTS} | {
        "sft": plain["calibration"]["sft"],
        "simulator": {name: plain["simulator"][name] for name in ("warm_start", "sampling")},
    }
    settings = json.loads(json.dumps(settings, default=str))  # as it is read back
    found: dict[str, Any] = read_json(out) if out.is_file() else {"settings": settings, "points": []}
    if found.get("settings") != settings:
        raise UserError(
            f"{out} has points of other settings, or of another largest number of logs: name another file, or remove it"
        )
    points: list[dict[str, Any]] = found["points"]
    done = {(point["size"], point["logs"]) for point in points}
    missing = {name: [n for n in sorted(counts) if (name, n) not in done] for name in names}
    if not any(missing.values()):
        return points
    with TemporaryDirectory() as folder:
        progress = Progress()
        inputs = read_inputs(config, Path(folder), progress)
        for name, counts_of_size in missing.items():
            if counts_of_size:
                for point in _of_size(of_size(inputs, name), name, counts_of_size):
                    points = [each for each in points if (each["size"], each["logs"]) != (name, point["logs"])]
                    points.append(point)
                    points.sort(key=lambda each: (list(SIZES).index(each["size"]), each["logs"]))
                    write_json(out, {"settings": settings, "points": points})
        progress.close()
    return points


def of_size(inputs: "RunInputs", name: str) -> "RunInputs":
    """The same run with a simulator of another size, in a folder of its own."""
    simulator = replace(inputs.config.simulator, tiny=replace(inputs.config.simulator.tiny, **SIZES[name]))
    config = replace(inputs.config, simulator=simulator, reuse_fits=False)
    return replace(inputs, config=config, folder=inputs.folder / name)


def _of_size(inputs: "RunInputs", name: str, counts: Sequence[int]) -> "Iterator[dict[str, Any]]":
    """Points of one size, as they come: that before calibration first."""
    from calibrated_rl.calibration.sft import fine_tune, log_samples, sample_items
    from calibrated_rl.data.dialogue import Side, Split
    from calibrated_rl.learner.group import LearnerGroup
    from calibrated_rl.learner.slots import SIMULATOR
    from calibrated_rl.run.base_models import prepare_models
    from calibrated_rl.run.fits import Fits
    from calibrated_rl.run.machine import start_ray

    config, models = inputs.config, prepare_models(inputs)
    chat = models.simulator.chat
    start_ray()
    with ExitStack() as stack:
        learner = LearnerGroup(config.learner)
        stack.callback(learner.close)
        pretrained = Fits(inputs, models, learner).uncalibrated_simulator()
        yield {"size": name, "logs": 0, "seconds": 0.0} | _shift(inputs, learner, chat, pretrained)
        train, monitor = (log_samples(inputs.logs[s], Side.USER, chat) for s in (Split.CALIBRATION, Split.MONITOR))
        for count in counts:
            began = time.monotonic()
            aligned = inputs.folder / f"{name}-{count}"
            fit = fine_tune(
                learner, SIMULATOR, pretrained, sample_items(train, count, 0), monitor, config.calibration.sft, aligned,
                0, inputs.progress(f"{name}, {count} logs"),
            )  # fmt: skip
            seconds = time.monotonic() - began
            point: dict[str, Any] = {"size": name, "logs": count, "seconds": seconds, "epochs": fit["epochs"]}
            point |= _shift(inputs, learner, chat, aligned)
            logger.info(f"{name}, {count} logs: exact total variation {point['exact_tv']['mean']:.3f}")
            yield point


def _shift(inputs: "RunInputs", learner: Any, chat: Any, folder: Path) -> dict[str, Any]:
    """Exact shift of the simulator in ``folder`` on held-out human replies."""
    from calibrated_rl.calibration.sft import log_samples
    from calibrated_rl.data.dialogue import Side, Split
    from calibrated_rl.evaluation.replies import exact_replies
    from calibrated_rl.learner.slots import SIMULATOR

    assert inputs.human is not None
    logs: list[Dialogue] = [log for log in inputs.logs[Split.HELD_OUT] if log.user_turn_indices()]
    views = [sample.tokens for sample in log_samples(logs, Side.USER, chat)]
    learner.load(SIMULATOR, folder, trainable=False)
    sampling = inputs.config.simulator.sampling
    log_probs = learner.log_probs(SIMULATOR, views, sampling.temperature)
    replies = exact_replies(inputs.human, logs, views, log_probs, sampling.max_turn_tokens)
    return {f"exact_{name}": estimate.as_dict() for name, estimate in replies.shift().items()}


def table(points: Sequence[dict[str, Any]]) -> str:
    """One line a point."""
    lines = ["model   logs     exact total variation   seconds"]
    for point in points:
        tv = point["exact_tv"]
        value = f"{tv['mean']:.3f} [{tv['low']:.3f}, {tv['high']:.3f}]"
        lines.append(f"{point['size']:<6} {point['logs']:>6}   {value:>23}   {point['seconds']:>7.0f}")
    return "\n".join(lines)


def draw(points: Sequence[dict[str, Any]], file: Path) -> None:
    """Total variation against the number of logs, one line a size."""
    from calibrated_rl.report.plots.drawing import figure, plot_style

    with plot_style():
        fig = figure(6.4, 3.4)
        axes = fig.subplots()
        for name in dict.fromkeys(point["size"] for point in points):
            of_size = [point for point in points if point["size"] == name and point["logs"]]
            means = [point["exact_tv"]["mean"] for point in of_size]
            errors = [
                [abs(point["exact_tv"]["mean"] - point["exact_tv"][bound]) for point in of_size]
                for bound in ("low", "high")
            ]
            axes.errorbar([point["logs"] for point in of_size], means, yerr=errors, marker="o", ms=5, label=name)
        axes.set_xscale("log")
        counts = sorted({point["logs"] for point in points if point["logs"]})
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("human dialogues in calibration")
        axes.set_title("exact total variation between simulator and people, after calibration")
        axes.legend(title="model")
        fig.savefig(file, dpi=150)
