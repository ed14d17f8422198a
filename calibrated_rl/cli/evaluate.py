"""Judge the trained policies of a run again on held-out people, with the run's settings or other ones.

    python jobs/evaluate.py runs/dev [--policy calibrated-0] [key=value ...]

Starts only the policy's engine (and the proxy's, where a proxy stands for people). Prints the table of the arms, writes
RUN/evaluation.json, and says whether the figures are those that the run itself wrote to RUN/arms: in deterministic
mode they are, unless settings were changed.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.cli import command
from calibrated_rl.runtime import console

if TYPE_CHECKING:
    from calibrated_rl.run.saved_run import SavedPolicy, SavedRun
    from calibrated_rl.runtime.progress import Progress

logger = logging.getLogger(__name__)


def main() -> None:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. evaluation.scenarios=500")
    parser.add_argument("--policy", default="", metavar="ARM-SEED", help="judge only this one (default: all)")
    arguments = parser.parse_intermixed_args()

    from calibrated_rl.run.saved_run import open_run
    from calibrated_rl.runtime.progress import Progress

    run = open_run(arguments.run, arguments.overrides)
    policies = [run.policy(arguments.policy)] if arguments.policy else run.policies
    judge(run, policies, Progress())


def judge(run: "SavedRun", policies: "list[SavedPolicy]", progress: "Progress") -> None:
    """Judge ``policies`` one after the other on one engine; print and write what was found."""
    from calibrated_rl.evaluation.again import check_eval_user, evaluate_again
    from calibrated_rl.evaluation.summary import summarise
    from calibrated_rl.report.text import table
    from calibrated_rl.rollout.statistics import COUNTED
    from calibrated_rl.run.base_models import prepare_models
    from calibrated_rl.run.cluster import start_cluster
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.run.saved_run import check_engines_fit
    from calibrated_rl.storage.files import write_json
    from calibrated_rl.study.compare import versions

    check_eval_user(run)
    inputs = read_inputs(run.config, run.folder, progress, training=False)
    models = prepare_models(inputs)
    engines = {"policy": (run.config.policy.engine, policies[0].folder)}
    if run.config.proxy.model:
        fitted = run.folder / "models" / "proxy" if run.config.proxy.sft.epochs else models.folders()["proxy"]
        engines["proxy"] = (run.config.proxy.engine, fitted)
    check_engines_fit(engines)
    command.start_ray()
    logger.info("starting the engine" if len(engines) == 1 else "starting the policy's and the proxy's engine")
    cluster = start_cluster(inputs, models, {role: folder for role, (_, folder) in engines.items()})
    results, agrees = [], {}
    try:
        for number, policy in enumerate(policies, start=1):
            logger.info(f"judging {policy.name} ({number}/{len(policies)})")
            results.append(evaluate_again(cluster, policy))
            agrees[policy.name], words = agreement(run, policy, results[-1]["scores"])
            logger.info(f"{policy.name}: {words}")
    finally:
        cluster.close()
        progress.close()
    split = run.config.evaluation.split
    found = summarise(results, sorted({policy.seed for policy in policies})) | {
        "label": "" if split == "held_out" else f"judged on the {split} split",
        "settings": asdict(run.config.evaluation) | {"deterministic": run.config.deterministic},
        "changed": run.changed,
        "scores": {policy.name: result["scores"] for policy, result in zip(policies, results, strict=True)},
        "agrees_with_run": agrees,
        **{name: counted for name, counted in cluster.collector.statistics.found().items() if name in COUNTED},
        "versions": versions(),
    }
    file = run.folder / "evaluation.json"
    write_json(file, found)
    console.result(table(found))
    console.result(f"figures: {file.resolve()}")


def agreement(run: "SavedRun", policy: "SavedPolicy", scores: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether the run's own figures came out again (None: they cannot be compared), and that in words."""
    from calibrated_rl.evaluation.again import differences

    recorded = (policy.result or {}).get("scores")
    if recorded is None:
        return None, "the run itself has no figures of it"
    if run.changed:
        return None, f"not compared with the run's own figures, which had another {', '.join(run.changed)}"
    different = differences(scores, recorded)
    if not different:
        return True, f"the same figures as in arms/{policy.name}.json"
    chance = "" if run.config.deterministic else " (the run is not deterministic, so they differ by chance)"
    return False, f"other figures than in arms/{policy.name}.json: {'; '.join(different)}{chance}"
