"""How long will an arm train, with how many replicas of each side and learner ranks, and for how many dollars?

    python jobs/plan.py configs/dev.yaml --arm interactive [key=value ...]
    python jobs/plan.py configs/dev.yaml --arm interactive --run runs/dev --cluster configs/clusters/two_cores.yaml
    python jobs/plan.py configs/dev.yaml --arm interactive --run runs/dev --check runs/other

Goes by measured updates: those of --run, or of a short run with everything real that it does itself (a few minutes)
and keeps in RUNS/NAME-probe-ARM. Predicts an update with the config's own numbers and, with --cluster, searches all
numbers for which there is room: the cheapest run and the fastest. --check compares what is predicted for the settings
of another run with what then happened there. --picture draws where the time of each arm of --run went.
docs/speed.md says what the model knows and what not.
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.cli.compare import parser_of
from calibrated_rl.config.sections import ArmName
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Positive

if TYPE_CHECKING:
    from calibrated_rl.config.run_config import RunConfig

logger = logging.getLogger(__name__)


def main() -> int:
    assert __doc__ is not None
    parser = parser_of(__doc__)
    parser.add_argument(
        "--arm", type=command.allowed(ArmName), default="calibrated",
        help="which arm is planned for (default: calibrated)",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="folder of a run whose updates were measured")
    parser.add_argument(
        "--first", type=command.allowed(Positive), metavar="N", help="use only the first N updates of --run"
    )
    parser.add_argument(
        "--updates", type=command.allowed(Positive), default=8, metavar="N",
        help="without --run: how many to do (default: 8)",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="machines and prices, see configs/clusters/")
    parser.add_argument("--check", type=Path, metavar="RUN", help="compare with what happened in this run")
    parser.add_argument("--out", type=command.result_file(), metavar="FILE", help="write all figures as JSON")
    parser.add_argument(
        "--picture", type=command.picture, metavar="FILE", help="draw where the time goes, e.g. step.png"
    )
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.config.run_config import load_config
    from calibrated_rl.run.machine import hardware_file

    load_config(arguments.config, arguments.overrides)  # mistakes come to light before anybody looks for devices
    overrides = [hardware_file(arguments.hardware), *arguments.overrides]
    config = load_config(arguments.config, overrides)
    plan(config, arguments)
    return 0


def plan(config: "RunConfig", arguments: argparse.Namespace) -> None:
    """Measure if need be, predict, print, and write what was asked for."""
    from calibrated_rl.config.arms import builtin_arms, find_arm, find_arms
    from calibrated_rl.errors import UserError
    from calibrated_rl.storage.files import write_json
    from tools.plan import text
    from tools.plan.check import check_run
    from tools.plan.cluster import Cluster, ClusterConfig, needs_of, read_cluster
    from tools.plan.measured import FEWEST, WARM_UP, read_measured, trained_arms
    from tools.plan.picture import draw
    from tools.plan.search import Planner, cheapest, counts_of, fastest

    arm = arguments.arm
    if not find_arm(arm).runs_rollouts:
        choices = ", ".join(each.name for each in find_arms(builtin_arms()) if each.runs_rollouts)
        raise UserError(f"there is no arm '{arm}' that runs rollouts; choose among {choices}")
    asked: ClusterConfig | None = read_cluster(arguments.cluster) if arguments.cluster else None
    needs = needs_of(config)
    if asked is not None:
        cluster = Cluster(asked, needs, str(arguments.cluster))
    else:
        cluster = Cluster.of_one_machine(needs, counts_of(config))
    if arguments.run is None and arguments.updates < WARM_UP + FEWEST:
        raise UserError(f"--updates {arguments.updates}: at least {WARM_UP + FEWEST} are needed")
    run = arguments.run or measure(config, arm, arguments)
    measured = read_measured(run, arm, arguments.first)
    if arguments.picture:
        draw([read_measured(run, each) for each in trained_arms(run)], arguments.picture)
        console.result(f"picture: {arguments.picture.resolve()}")
    planner = Planner(measured, config, cluster)
    own = counts_of(config)
    found: dict[str, Any] = text.figures(planner, measured, own)
    console.result(text.measured_table(measured))
    console.result(text.prediction_table(planner, own))
    if asked is not None:
        plans = list(planner.plans())
        chosen = {"cheapest": cheapest(plans), "fastest": fastest(plans)}
        if (as_configured := planner.plan(own)) is not None:
            chosen = {"as configured": as_configured} | chosen
        console.result(text.plans_table(planner, chosen))
        found["plans"] = text.plan_figures(planner, chosen)
    if arguments.check:
        checked = check_run(planner, arguments.check)
        console.result(text.check_table(checked))
        found["check"] = checked.as_dict()
    console.result(text.notes(planner))
    if arguments.out:
        write_json(arguments.out, found)
        console.result(f"figures: {arguments.out.resolve()}")


def measure(config: "RunConfig", arm: str, arguments: argparse.Namespace) -> Path:
    """The folder of a short run of ``arm``; one that is there already is not done again."""
    from calibrated_rl.run.saved_run import refuse_other_settings
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import exclusive
    from calibrated_rl.training.training_run import started
    from tools.plan.probe import probe, probe_config

    short = probe_config(config, arm, arguments.updates)
    folder, progress = Path(arguments.runs) / short.name, Progress()
    refuse_other_settings(folder, short)
    if (folder / "arms" / f"{arm}-{short.seeds[0]}.json").is_file():
        logger.info(f"measured already: {folder}")
        return folder
    logger.info(f"measuring {arguments.updates} updates of {arm} in {folder}")
    with exclusive(folder), started(short, folder, progress) as run:
        return probe(run, arm)
