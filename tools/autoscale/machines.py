"""The launch file that users give to a cloud, as the configuration of an autoscaler that starts nodes on this machine.

Names, labels, least and most nodes and the idle time are those of the file. A node has ``cpus`` CPUs and no GPU, so
that a part that would fill a machine of the cloud fills a node here; a minute of the file takes ``minute_s`` seconds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.settings.yaml_files import read_yaml

HEAD = "ray.head.default"
"""What Ray's monitor calls the type of the head that it runs beside."""
HEAD_ID = "f" * 51 + "00000"
EMPTY: dict[str, Any] = {
    "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": [],
    "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
    "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts_sync_continuously": False,
}  # fmt: skip
"""What the monitor wants of a file that its launcher has filled in."""


def autoscaling_config(
    launch_file: Path, folder: Path, gcs_address: str, *, cpus: float, minute_s: float
) -> dict[str, Any]:
    """Configuration for ``ray start --head --autoscaling-config``.

    Args:
        folder: through which the provider is told what the cloud has, and tells what it did.

    Raises:
        UserError: the file has no node types with workers.
    """
    launch = read_yaml(launch_file).values
    types = {
        name: node_type(kind, cpus)
        for name, kind in (launch.get("available_node_types") or {}).items()
        if name != launch.get("head_node_type")
    }
    if not types:
        raise UserError(f"{launch_file} has no available_node_types beside its head_node_type")
    idle = float(launch.get("idle_timeout_minutes", 5))
    return {
        **EMPTY,
        "cluster_name": "local",
        "max_workers": int(launch.get("max_workers", 2)),
        "upscaling_speed": float(launch.get("upscaling_speed", 1.0)),
        "idle_timeout_minutes": idle * minute_s / 60,
        "provider": {
            "type": "external", "module": "tools.autoscale.provider.LocalNodes", "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True,
            "head_node_id": HEAD_ID, "gcs_address": gcs_address, "folder": str(folder),
        },
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}, **types,
        },
    }  # fmt: skip


def node_type(kind: Mapping[str, Any], cpus: float) -> dict[str, Any]:
    """A node type of the file with this machine's resources."""
    return {
        "resources": {"CPU": cpus}, "labels": dict(kind.get("labels") or {}), "node_config": {},
        "min_workers": int(kind.get("min_workers", 0)), "max_workers": int(kind.get("max_workers", 0)),
    }  # fmt: skip


def spot_types(launch_file: Path) -> list[str]:
    """Names of the types that the cloud may take back at any time."""
    launch = read_yaml(launch_file).values
    return [
        name
        for name, kind in (launch.get("available_node_types") or {}).items()
        if "InstanceMarketOptions" in (kind.get("node_config") or {})
    ]
