"""The machine or cluster of a run: selects its hardware settings, and starts Ray."""

import logging
import os
import sys
from pathlib import Path
from typing import Literal

from calibrated_rl import config
from calibrated_rl.runtime import third_party

logger = logging.getLogger(__name__)

Hardware = Literal["auto", "cpu", "one_gpu", "cluster"]
"""Files of ``calibrated_rl/config/hardware``; ``auto``: the one that fits the GPUs found."""
FOLDER = Path(config.__file__).parent / "hardware"
CLUSTER_GPUS = 7
"""GPUs that ``config/hardware/cluster.yaml`` needs: two replicas a side, two learner ranks, a proxy."""


def hardware_file(name: Hardware) -> str:
    """The file of ``calibrated_rl/config/hardware`` to merge over a config; ``auto`` counts the GPUs, and takes
    ``cluster`` only where each of its parts gets one."""
    if name == "auto":
        count = _gpus()
        name = "cpu" if not count else "cluster" if count >= CLUSTER_GPUS else "one_gpu"
        logger.debug(f"found {count} GPUs: using the settings of {name}.yaml")
    return str(FOLDER / f"{name}.yaml")


def _gpus() -> int:
    if "RAY_ADDRESS" in os.environ:
        import ray

        start_ray()
        return int(ray.cluster_resources().get("GPU", 0))
    import torch

    return torch.cuda.device_count()


def start_ray() -> None:
    """Join the cluster that this job was submitted to, or start a local Ray; one that this process has started is
    reused."""
    import ray

    third_party.select_deepspeed_device()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():
        return
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} | third_party.worker_environment()
    local = "RAY_ADDRESS" not in os.environ
    options = third_party.ray_options(local=local) | {"runtime_env": {"env_vars": environment}}
    if local:
        # Workers that Ray starts in advance are of no use here: every actor has an environment of its own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # "local": never a cluster that runs on this machine for another purpose
        options |= {"address": "local", "object_store_memory": 1536 * 2**20, "include_dashboard": False}
    logger.debug(f"starting a local Ray with {options}" if local else f"joining the Ray at {os.environ['RAY_ADDRESS']}")
    ray.init(**options)
