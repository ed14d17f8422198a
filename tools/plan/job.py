"""Plan how long an arm will train, with how many replicas of each side and learner ranks, and for how many dollars.

    python jobs/plan.py configs/dev.yaml --arm interactive [key=value ...]
    python jobs/plan.py configs/dev.yaml --arm interactive --run runs/dev --cluster configs/clusters/two_cores.yaml
    python jobs/plan.py configs/dev.yaml --arm interactive --run runs/dev --check runs/other

Based on measured updates: those of --run, or of a short run with all parts that it does itself (a few minutes) and
writes to RUNS/NAME-probe-ARM. Predicts an update with the config's own numbers and, with --cluster, searches all
numbers for which there is capacity: the cheapest run and the fastest. --check compares the prediction for the settings
of another run with its measurements. --picture draws where the time of each arm of --run went. docs/speed.md describes
the model and its limits.

    python jobs/plan.py --shape 7b --gpus 8 --gpu-memory 80 [policy.engine.max_model_len=8192 ...]

With --shape nothing is measured or loaded: the memory that a model of that shape takes on each GPU, of the learner by
ZeRO stage and of engines by tensor_parallel. docs/models.md describes it.
"""

import argparse
import logging
import sys
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
    if any(argument.partition("=")[0] == "--shape" for argument in sys.argv[1:]):
        from tools.plan.shape_job import main as plan_shape

        return plan_shape()
    parser = parser_of(__doc__)
    parser.add_argument(
        "--arm",
        type=command.allowed(ArmName),
        default="calibrated",
        help="the arm to plan for (default: calibrated)",
    )
    parser.add_argument("--run", type=Path, metavar="RUN", help="folder of a run whose updates were measured")
    parser.add_argument(
        "--first", type=command.allowed(Positive), metavar="N", help="use only the first N updates of --run"
    )
    parser.add_argument(
        "--updates",
        type=command.allowed(Positive),
        default=8,
        metavar="N",
        help="without --run: how many to do (default: 8)",
    )
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="machines and prices, see configs/clusters/")
    parser.add_argument("--check", type=Path, metavar="RUN", help="compare with the measurements of this run")
    parser.add_argument("--out", type=command.result_file(), metavar="FILE", help="write all numbers as JSON")
    parser.add_argument(
        "--picture", type=command.picture, metavar="FILE", help="draw where the time goes, e.g. step.png"
    )
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.config.load import load_config
    from calibrated_rl.run.machine import hardware_file

    load_config(arguments.config, arguments.overrides)  # reports mistakes before devices are detected
    overrides = [hardware_file(arguments.hardware), *arguments.overrides]
    config = load_config(arguments.config, overrides)
    plan(config, arguments)
    return 0


def plan(config: "RunConfig", arguments: argparse.Namespace) -> None:
    """Measure if necessary, predict, print, and write the requested files."""
    from calibrated_rl.config.arms import builtin_arms, find_arm, find_arms
    from calibrated_rl.errors import UserError
    from calibrated_rl.storage.files import write_json
    from tools.plan import text
    from tools.plan.check import check_run
    from tools.plan.cluster import Cluster, ClusterConfig, needs_of, read_cluster
    from tools.plan.measured import MIN_UPDATES, WARM_UP, read_measured, trained_arms
    from tools.plan.picture import draw
    from tools.plan.search import Planner, cheapest, counts_of, fastest

    arm = arguments.arm
    if not find_arm(arm).runs_rollouts:
        choices = ", ".join(arm_class.name for arm_class in find_arms(builtin_arms()) if arm_class.runs_rollouts)
        raise UserError(f"there is no arm '{arm}' that runs rollouts; choose among {choices}")
    cluster_config: ClusterConfig | None = read_cluster(arguments.cluster) if arguments.cluster else None
    needs = needs_of(config)
    if cluster_config is not None:
        cluster = Cluster(cluster_config, needs, str(arguments.cluster))
    else:
        cluster = Cluster.of_one_machine(needs, counts_of(config))
    if arguments.run is None and arguments.updates < WARM_UP + MIN_UPDATES:
        raise UserError(f"--updates {arguments.updates}: at least {WARM_UP + MIN_UPDATES} are needed")
    run = arguments.run or measure(config, arm, arguments)
    measured = read_measured(run, arm, arguments.first)
    if arguments.picture:
        draw([read_measured(run, trained_arm) for trained_arm in trained_arms(run)], arguments.picture)
        console.result(f"picture: {arguments.picture.resolve()}")
    planner = Planner(measured, config, cluster)
    own_counts = counts_of(config)
    results: dict[str, Any] = text.prediction_values(planner, measured, own_counts)
    console.result(text.measured_table(measured))
    console.result(text.prediction_table(planner, own_counts))
    if cluster_config is not None:
        plans = list(planner.plans())
        chosen_plans = {"cheapest": cheapest(plans), "fastest": fastest(plans)}
        if (as_configured := planner.plan(own_counts)) is not None:
            chosen_plans = {"as configured": as_configured} | chosen_plans
        console.result(text.plans_table(planner, chosen_plans))
        results["plans"] = text.plan_values(planner, chosen_plans)
    if arguments.check:
        checked = check_run(planner, arguments.check)
        console.result(text.check_table(checked))
        results["check"] = checked.as_dict()
    console.result(text.notes(planner))
    if arguments.out:
        write_json(arguments.out, results)
        console.result(f"results: {arguments.out.resolve()}")


def measure(config: "RunConfig", arm: str, arguments: argparse.Namespace) -> Path:
    """The folder of a short run of ``arm``; an existing one is reused."""
    from calibrated_rl.run.saved_run import refuse_other_settings
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import exclusive
    from calibrated_rl.training.training_run import started
    from tools.plan.probe import probe, probe_config

    short = probe_config(config, arm, arguments.updates)
    folder, progress = Path(arguments.runs) / short.name, Progress()
    refuse_other_settings(folder, short)
    if (folder / "arms" / f"{arm}-{short.seeds[0]}.json").is_file():
        logger.info(f"reusing the measurements in {folder}")
        return folder
    logger.info(f"measuring {arguments.updates} updates of {arm} in {folder}")
    with exclusive(folder), started(short, folder, progress) as run:
        return probe(run, arm)
