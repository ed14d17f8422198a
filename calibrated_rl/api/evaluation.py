"""Evaluates trained policies again."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.run.machine import start_ray

if TYPE_CHECKING:
    from calibrated_rl.run.saved_run import SavedPolicy, SavedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The result of evaluating policies again."""

    file: Path
    """JSON with all metrics, in the run folder."""
    metrics: Mapping[str, Any]
    """The content of ``file``."""
    agrees: Mapping[str, bool | None]
    """By policy, whether the metrics equal the run's own; None where they cannot be compared, because the run has none
    or had other settings."""

    def table(self) -> str:
        """The arms as lines of text, as ``jobs/evaluate.py`` prints them."""
        from calibrated_rl.report.text import table

        return table(self.metrics)


def evaluate(run: str | os.PathLike[str], overrides: Sequence[str] = (), *, policy: str = "") -> Evaluation:
    """Evaluate the trained policies of a run again on held-out users, with the run's settings or other ones. Starts the
    policy's engine alone (and the proxy's, where a proxy replaces the human), and Ray as ``compare`` does.

    Args:
        run: its folder.
        overrides: settings that replace the run's own, as ``key=value``.
        policy: ARM-SEED of the one to evaluate; empty: all.

    Raises:
        UserError: the run has no such policy, or no eval user.
        PartLost: an engine died.
    """
    from calibrated_rl.evaluation.again import check_eval_user, evaluate_again
    from calibrated_rl.evaluation.summary import summarise
    from calibrated_rl.rollout.statistics import COUNTED
    from calibrated_rl.run.base_models import prepare_models
    from calibrated_rl.run.cluster import start_cluster
    from calibrated_rl.run.inputs import read_inputs
    from calibrated_rl.run.saved_run import check_engines_fit, open_run
    from calibrated_rl.runtime.progress import Progress
    from calibrated_rl.storage.files import write_json
    from calibrated_rl.study.compare import versions

    saved, progress = open_run(Path(run), list(overrides)), Progress()
    policies = [saved.policy(policy)] if policy else saved.policies
    check_eval_user(saved)
    inputs = read_inputs(saved.config, saved.folder, progress, training=False)
    models = prepare_models(inputs)
    engines = {"policy": (saved.config.policy.engine, policies[0].folder)}
    if saved.config.proxy.model:
        fitted = saved.folder / "models" / "proxy" if saved.config.proxy.sft.epochs else models.folders()["proxy"]
        engines["proxy"] = (saved.config.proxy.engine, fitted)
    check_engines_fit(engines)
    start_ray()
    logger.info("starting the engine" if len(engines) == 1 else "starting the policy's and the proxy's engine")
    cluster = start_cluster(inputs, models, {role: folder for role, (_, folder) in engines.items()})
    results: list[dict[str, Any]] = []
    agrees: dict[str, bool | None] = {}
    try:
        for number, saved_policy in enumerate(policies, start=1):
            logger.info(f"evaluating {saved_policy.name} ({number}/{len(policies)})")
            results.append(evaluate_again(cluster, saved_policy))
            agrees[saved_policy.name], explanation = agreement(saved, saved_policy, results[-1]["scores"])
            logger.info(f"{saved_policy.name}: {explanation}")
    finally:
        cluster.close()
        inputs.endpoints.close()
        progress.close()
    split = saved.config.evaluation.split
    metrics = summarise(results, sorted({policy_.seed for policy_ in policies})) | {
        "label": "" if split == "held_out" else f"evaluated on the {split} split",
        "settings": asdict(saved.config.evaluation) | {"deterministic": saved.config.deterministic},
        "changed": saved.changed,
        "scores": {policy_.name: result["scores"] for policy_, result in zip(policies, results, strict=True)},
        "agrees_with_run": agrees,
        **{name: counted for name, counted in cluster.collector.statistics.counts().items() if name in COUNTED},
        "versions": versions(),
    }
    file = saved.folder / "evaluation.json"
    write_json(file, metrics)
    return Evaluation(file=file.resolve(), metrics=metrics, agrees=agrees)


def agreement(run: "SavedRun", policy: "SavedPolicy", scores: dict[str, Any]) -> tuple[bool | None, str]:
    """Whether ``scores`` equal the run's own (None: they cannot be compared), and an explanation."""
    from calibrated_rl.evaluation.again import differences

    recorded = (policy.result or {}).get("scores")
    if recorded is None:
        return None, "the run itself has no metrics of it"
    if run.changed:
        return None, f"not compared with the run's own metrics, which had another {', '.join(run.changed)}"
    different = differences(scores, recorded)
    if not different:
        return True, f"the same metrics as in arms/{policy.name}.json"
    chance = "" if run.config.deterministic else " (the run is not deterministic, so they differ by chance)"
    return False, f"other metrics than in arms/{policy.name}.json: {'; '.join(different)}{chance}"
