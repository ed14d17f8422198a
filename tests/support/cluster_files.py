"""The files of ``cluster/`` and what a run asks of the machines that they start; for tests."""

from pathlib import Path
from typing import Any

import ray
import yaml

from calibrated_rl.config.load import load_config
from calibrated_rl.config.run_config import RunConfig
from tests.support.paths import ROOT

CLUSTER = ROOT / "cluster"
RAY = Path(ray.__file__).parent
CODE = "/home/ray/calibrated_rl/"
"""Where the image has the repository's files."""
LAUNCHER = ("aws.yaml", "gcp.yaml")
CLUSTERS = (*LAUNCHER, "kuberay-raycluster.yaml", "kuberay-rayjob.yaml")
"""Files with the two groups of GPU machines."""
MANIFESTS = tuple(sorted(path.name for path in CLUSTER.glob("kuberay-*.yaml")))
STARTING = (*CLUSTERS, "kuberay-rayservice.yaml", "sky.yaml", "slurm.sh")
"""Files that start a Ray."""

Tree = dict[str, Any]


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


def load(name: str) -> Tree:
    tree: Tree = yaml.safe_load(text_of(name))
    return tree


def hardware(*overrides: str) -> RunConfig:
    files = [str(ROOT / "calibrated_rl" / "config" / "hardware" / f"{name}.yaml") for name in ("cluster", "labelled")]
    return load_config(ROOT / "configs" / "dev.yaml", [*files, *overrides])


def demand(config: RunConfig) -> list[tuple[dict[str, float], dict[str, str]]]:
    """Resources and labels of everything that a run places, with as many replicas as it may have."""
    engines = [side.engine for side in (config.policy, config.simulator) for _ in range(side.replica_bounds[1])]
    engines.append(config.proxy.engine)
    ranks = [(config.learner.cpus, config.learner.gpus, config.learner.labels)] * config.learner.ranks
    places = [(engine.num_cpus, engine.num_gpus, engine.labels) for engine in engines] + ranks
    return [({"CPU": cpus, "GPU": gpus}, labels) for cpus, gpus, labels in places]
