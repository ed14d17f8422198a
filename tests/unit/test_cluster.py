"""What would start clusters: each file fits its own schema, Ray's token is on in all, and what they name is there.

Nothing is started. Launcher files go through Ray's own validator; manifests for KubeRay through a condensed schema and,
by way of what Ray's autoscaler reads from them, through the same validator, so that one set of tests asks both kinds
whether the machines that the hardware configs ask for can come.
"""

import contextlib
import copy
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from calibrated_rl.config.arms import builtin_arms
from calibrated_rl.config.load import load_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.placement import placement_of
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.learner.group import RankActor, rank_options
from tests.support.cluster_files import (
    CLUSTER,
    CLUSTERS,
    CODE,
    LAUNCHER,
    MANIFESTS,
    RAY,
    ROOT,
    STARTING,
    Tree,
    demand,
    hardware,
    load,
    text_of,
)  # fmt: skip
from tests.support.image_files import image_folders, image_user, requirements

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def schema(name: str) -> Tree:
    tree: Tree = json.loads((ROOT / "tests" / "support" / "schemas" / f"{name}.json").read_text())
    return tree


def test_every_file_is_known() -> None:
    names = {path.name for path in CLUSTER.iterdir()}
    assert names == {*STARTING, *MANIFESTS, "README.md"}
    assert [name for name in names - {"README.md"} if f"`{name}`" not in text_of("README.md")] == []


# ---- schemas ---------------------------------------------------------------------------------------------


def check_launcher(config: Tree) -> Tree:
    """What ``ray up`` checks before it talks to the cloud; the config with the launcher's defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: Tree = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def check_manifest(config: Tree) -> None:
    kuberay = schema("kuberay")
    known = {each["$ref"].rsplit("/", 1)[1] for each in kuberay["oneOf"]}
    assert config["kind"] in known
    only = {"$schema": kuberay["$schema"], "$ref": f"#/$defs/{config['kind']}", "$defs": kuberay["$defs"]}
    jsonschema.validate(config, only)


def check_task(config: Tree) -> None:
    jsonschema.validate(config, schema("skypilot"))


def check_task_by_its_own(config: Tree) -> None:
    schemas = pytest.importorskip("sky.utils.schemas")
    jsonschema.validate(config, schemas.get_task_schema())
    jsonschema.validate(config["resources"], schemas.get_resources_schema())


CHECKS: dict[str, Callable[[Tree], Any]] = (
    dict.fromkeys(LAUNCHER, check_launcher) | dict.fromkeys(MANIFESTS, check_manifest) | {"sky.yaml": check_task}
)


@pytest.mark.parametrize("name", CHECKS)
def test_files_fit_their_schemas(name: str) -> None:
    CHECKS[name](load(name))


def test_sky_fits_its_own_schema() -> None:
    check_task_by_its_own(load("sky.yaml"))
    with pytest.raises(jsonschema.ValidationError):
        check_task_by_its_own(load("sky.yaml") | {"setupp": ""})


@pytest.mark.parametrize("name", ["kuberay", "skypilot"])
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


WRONG: list[tuple[str, str, Any]] = [
    ("aws.yaml", "max_worker", 3),
    ("aws.yaml", "docker.imag", "x"),
    ("aws.yaml", "available_node_types.rollout.resource", {}),
    ("aws.yaml", "available_node_types.rollout.resources.GPU", 0.5),
    ("gcp.yaml", "available_node_types.rollout.labels.part", 1),
    ("gcp.yaml", "head_node_type", "haed"),
    ("gcp.yaml", "available_node_types.learner.min_workers", 19),
    ("kuberay-raycluster.yaml", "spec.headGroupSpecs", {}),
    ("kuberay-raycluster.yaml", "spec.authOptions.mode", "tokens"),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.maxReplica", 3),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.template.spec.containers.0.resource", {}),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "48 GB"),
    ("kuberay-raycluster.yaml", "spec.headGroupSpec.rayStartParams.num-gpus", 0),
    ("kuberay-raycluster.yaml", "metadata.name", "9lives"),
    ("kuberay-raycluster.yaml", "spec.rayVersion", "2.51.0"),
    ("kuberay-raycluster.yaml", "spec.autoscalerOptions.command", ["ray"]),
    ("kuberay-raycluster.yaml", "spec.gcsFaultToleranceOptions", {"redisPassword": {"value": "x"}}),
    ("kuberay-raycluster.yaml", "spec.headGroupSpec.rayStartParams.labels", "part=head"),
    ("kuberay-raycluster.yaml", "spec.headGroupSpec.resources", {"CPU": "4"}),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.labels.part", "-rollout"),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.suspend", True),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.template.spec.restartPolicy", "Always"),
    ("kuberay-raycluster.yaml", "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "48ki"),
    ("kuberay-rayjob.yaml", "metadata.name", "a" * 48),
    ("kuberay-rayjob.yaml", "spec.rayClusterSpec.upgradeStrategy", {"type": "None"}),
    ("kuberay-rayjob.yaml", "spec.shutdownAfterJobFinishes", False),
    ("kuberay-rayjob.yaml", "spec.submissionMode", "InteractiveMode"),
    ("kuberay-rayjob.yaml", "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteCluster"}}),
    ("kuberay-rayservice.yaml", "spec.upgradeStrategy", {"type": "NewClusterWithIncrementalUpgrade"}),
    ("kuberay-rayjob.yaml", "spec.entrypont", "python"),
    ("kuberay-rayjob.yaml", "spec.submissionMode", "Job"),
    ("kuberay-rayjob.yaml", "spec.clusterSelector", {"ray.io/cluster": "both"}),
    ("kuberay-rayservice.yaml", "spec.rayClusterSpec", {}),
    ("kuberay-rayservice.yaml", "spec.serveConfigV2", {}),
    ("kuberay-storage.yaml", "spec.accessModes", ["ReadWriteAll"]),
    ("sky.yaml", "resource", {}),
    ("sky.yaml", "resources.any_of.0.accelerator", "L4:8"),
    ("sky.yaml", "envs.A-B", "x"),
    ("sky.yaml", "num_nodes", 0),
]


def changed(name: str, **values: Any) -> Tree:
    """A file with other values; None: without that key."""
    config = load(name)
    for key, value in values.items():
        *path, last = key.split(".")
        place: Any = config
        for step in path:
            place = place[int(step)] if step.isdigit() else place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return config


@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_mistakes_are_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        CHECKS[name](changed(name, **{key: value}))


RULES = [{"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 60}}]
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("raycluster", {"headGroupSpec.rayStartParams": None}),
    ("raycluster", {"headGroupSpec.rayStartParams": None, "headGroupSpec.resources": {"CPU": "4"}}),
    ("raycluster", {"workerGroupSpecs.0.minReplicas": None, "rayVersion": "2.100.1"}),
    ("raycluster", {"workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory": ".5Gi"}),
    (
        "raycluster",
        {"autoscalerOptions.version": "v1", "workerGroupSpecs.0.template.spec.restartPolicy": "Always"},
    ),
    ("rayjob", {"entrypoint": None, "backoffLimit": 0, "submissionMode": "InteractiveMode"}),
    (
        "rayjob",
        {"backoffLimit": 0, "clusterSelector": {"ray.io/cluster": "calibrated-rl"}, "rayClusterSpec": None},
    ),
    (
        "rayjob",
        {
            "shutdownAfterJobFinishes": None, "ttlSecondsAfterFinished": None,
            "deletionStrategy": {"deletionRules": RULES},
        },
    ),
    ("rayservice", {"serveConfigV2": None}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values"), RIGHT)
def test_what_the_operator_takes_is_not_refused(name: str, values: dict[str, Any]) -> None:
    check_manifest(changed(f"kuberay-{name}.yaml", **{f"spec.{key}": value for key, value in values.items()}))


# ---- machines --------------------------------------------------------------------------------------------


def cluster_of(manifest: Tree) -> Tree:
    """The cluster's specification in a RayCluster, RayJob or RayService."""
    spec = manifest["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec  # type: ignore[no-any-return]


def launch(name: str) -> Tree:
    """What the autoscaler is told, with Ray's validator having looked at it; for Kubernetes derived by Ray."""
    if name in LAUNCHER:
        return check_launcher(load(name))
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    derived: Tree = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "test", "namespace": "test"}, "spec": cluster_of(load(name))}
    )
    return derived


def unplaced(config: RunConfig, launched: Tree) -> list[dict[str, str]]:
    """Labels of what finds no machine when each takes the first that fits, and all machines are there."""
    machines = [
        (dict(kind["resources"]), kind.get("labels", {}))
        for name, kind in launched["available_node_types"].items()
        for _ in range(1 if name == launched["head_node_type"] else kind["max_workers"])
    ]
    left = []
    for resources, labels in demand(config):
        for free, has in machines:
            if labels.items() <= has.items() and all(free.get(key, 0) >= value for key, value in resources.items()):
                for key, value in resources.items():
                    free[key] = free.get(key, 0) - value
                break
        else:
            left.append(labels)
    return left


@pytest.mark.parametrize("name", CLUSTERS)
def test_machines_for_all_parts_can_come(name: str) -> None:
    launched = launch(name)
    assert unplaced(hardware(), launched) == []
    assert unplaced(hardware("policy.scaling.maximum=5"), launched) == [{"part": "rollout"}]
    misnamed = hardware("learner.labels.part=learners")
    assert unplaced(misnamed, launched) == [{"part": "learners"}] * 2


@pytest.mark.parametrize("name", CLUSTERS)
def test_head_has_no_gpu_and_workers_come_on_demand(name: str) -> None:
    launched = launch(name)
    kinds = dict(launched["available_node_types"])
    assert kinds.pop(launched["head_node_type"])["resources"].get("GPU", 0) == 0
    assert {kind["labels"]["part"] for kind in kinds.values()} == {"rollout", "learner"}
    for kind in kinds.values():
        assert kind["resources"]["GPU"] >= 1 and kind["min_workers"] == 0 < kind["max_workers"]
    assert launched["max_workers"] == sum(kind["max_workers"] for kind in kinds.values())


def is_spot(name: str, kind: str) -> bool:
    """Whether the machines of a group may be taken away."""
    if name == "aws.yaml":
        config = load(name)["available_node_types"][kind]["node_config"]
        return bool(config.get("InstanceMarketOptions", {}).get("MarketType") == "spot")
    if name == "gcp.yaml":
        (scheduling,) = load(name)["available_node_types"][kind]["node_config"]["scheduling"]
        return bool(scheduling["provisioningModel"] == "SPOT")
    (group,) = (group for group in cluster_of(load(name))["workerGroupSpecs"] if group["groupName"] == kind)
    capacity = group["template"]["spec"]["nodeSelector"]["calibrated-rl/capacity"]
    assert f"calibrated-rl/capacity={capacity}" in text_of("README.md")
    return bool(capacity == "spot")


@pytest.mark.parametrize("name", CLUSTERS)
def test_spot_for_rollout_alone(name: str) -> None:
    assert is_spot(name, "rollout") and not is_spot(name, "learner")


def test_job_has_the_cluster_that_stays() -> None:
    assert cluster_of(load("kuberay-rayjob.yaml")) == cluster_of(load("kuberay-raycluster.yaml"))


def test_labels_reach_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, Any]] = []

    def ask(bundles: Any, bundle_label_selector: Any) -> None:
        asked.append((bundles, bundle_label_selector))

    monkeypatch.setattr(ray.util, "placement_group", ask)
    placement_of(hardware().policy.engine)
    placement_of(EngineConfig())
    assert asked == [([{"CPU": 2, "GPU": 1}], [{"part": "rollout"}]), ([{"CPU": 0.5}], None)]
    labelled, plain = rank_options(hardware().learner, 0), rank_options(LearnerConfig(), 0)
    assert labelled["label_selector"] == {"part": "learner"} and labelled["num_gpus"] == 1
    assert "label_selector" not in plain and plain["num_gpus"] == 0
    assert plain["runtime_env"]["env_vars"]["DS_ACCELERATOR"] == "cpu"
    for right, options in ((True, labelled), (True, plain), (False, labelled | {"label_selectors": {}})):
        with contextlib.nullcontext() if right else pytest.raises(ValueError):
            ray.remote(RankActor).options(**options)


def test_labels_are_such_as_ray_takes() -> None:
    from ray._private.label_utils import validate_label_selector, validate_node_label_syntax

    for name in CLUSTERS:
        for kind in launch(name)["available_node_types"].values():
            validate_node_label_syntax(kind.get("labels", {}))
    assert all(validate_label_selector(labels) is None for _, labels in demand(hardware()))
    assert validate_label_selector({"part": "-rollout"}) is not None


# ---- the token -------------------------------------------------------------------------------------------

LITERAL = re.compile(r"(?i)auth_token['\"]?[ ]*[:=][ ]*(?!null|[~$/])[^\s|]|[0-9a-f]{32}|bearer [a-z0-9]")
"""A token that stands in a file: a value other than nothing, a variable, a template or a path."""


def asks_for_token(name: str, text: str) -> bool:
    """Whether what the file starts takes only requests with the token, and where it gets it from is said."""
    if name == "slurm.sh":
        return "export RAY_AUTH_MODE=token" in text and "export RAY_AUTH_TOKEN_PATH=" in text
    config = yaml.safe_load(text)
    if name == "sky.yaml":
        return config["envs"].get("RAY_AUTH_MODE") == "token" and config["secrets"] == {"RAY_AUTH_TOKEN": None}
    if name in LAUNCHER:
        options = config["docker"]["run_options"]
        path = next((o.partition("RAY_AUTH_TOKEN_PATH=")[2] for o in options if "RAY_AUTH_TOKEN_PATH=" in o), "")
        return "--env RAY_AUTH_MODE=token" in options and path in config["file_mounts"]
    return bool(cluster_of(config).get("authOptions") == {"mode": "token"})


@pytest.mark.parametrize("name", STARTING)
def test_token_is_asked_for(name: str) -> None:
    text = text_of(name)
    assert asks_for_token(name, text)
    assert not asks_for_token(name, text.replace("RAY_AUTH_MODE", "RAY_AUTH").replace("mode: token", "mode: disabled"))


@pytest.mark.parametrize("name", [*STARTING, "kuberay-storage.yaml", "README.md"])
def test_no_token_in_a_file(name: str) -> None:
    assert not LITERAL.search(text_of(name))


@pytest.mark.parametrize("text", ["RAY_AUTH_TOKEN: s3c", "--env RAY_AUTH_TOKEN=abc", "auth_token: 'x1'", "0a" * 16])
def test_a_token_would_be_found(text: str) -> None:
    assert LITERAL.search(text)


# ---- what the files name ---------------------------------------------------------------------------------

PATHS = re.compile(r"(?<![\w/.-])(?:\.\./|/home/ray/calibrated_rl/)?((?:jobs|configs|cluster|tests)/[\w./-]*\w)")


def missing_paths(text: str) -> list[str]:
    return [path for path in PATHS.findall(text) if not (ROOT / path).exists()]


@pytest.mark.parametrize(
    "name", [*STARTING, "README.md", "../Dockerfile", "../calibrated_rl/config/hardware/labelled.yaml"]
)
def test_paths_exist(name: str) -> None:
    assert missing_paths(text_of(name)) == []


def test_a_missing_path_would_be_found() -> None:
    assert missing_paths(f"python {CODE}jobs/trian.py configs/dev.yaml") == ["jobs/trian.py"]


def commands(text: str) -> Iterator[list[str]]:
    """All commands of ``ray`` and ``python jobs/...`` in a file, cut into words."""
    joined = re.sub(r"\\\n\s*", "", text)
    joined = re.sub(r"(entrypoint: )>-\n((?:    .*\n)+)", lambda m: m[1] + " ".join(m[2].split()) + "\n", joined)
    for found in re.finditer(r"(?<![\w./-])((?:ray (?=[a-z-]+ |stop)|python (?:/\S*/)?jobs/)[^\n;|&>`#]*)", joined):
        yield shlex.split(found[1].replace("'", ""))


def options_of(job: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), "--help"], capture_output=True, text=True, timeout=120, check=True
    )
    return set(re.findall(r"--[a-z-]+", done.stdout))


def problems_of(words: list[str], jobs: dict[str, set[str]]) -> list[str]:
    """What Ray's command line, or the job, does not know."""
    from ray.scripts.scripts import cli

    if "--" in words:
        first, inner = words[: words.index("--")], words[words.index("--") + 1 :]
        inner = inner[2:] if inner[:1] == ["env"] else inner
        return problems_of(first, jobs) + (problems_of(inner, jobs) if inner else [])
    if words[0] == "python":
        known = jobs[Path(words[1]).name]
        values = dict(zip(words, words[1:], strict=False))
        wrong = [w for w in words if w.startswith("--") and w not in known]
        wrong += [values["--arm"]] if values.get("--arm", "start") not in builtin_arms() else []
        return wrong + ([] if values.get("--hardware") == "cluster" else ["hardware is not named"])
    command: Any = cli
    for depth, word in enumerate(words[1:], start=1):
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
        elif hasattr(command, "commands"):
            return [" ".join(words[: depth + 1])]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.slow
def test_commands_are_known() -> None:
    jobs = {name: options_of(name) for name in ("train.py", "compare.py")}
    found = {name: list(commands(text_of(name))) for name in (*STARTING, "README.md")}
    wrong = {name: [p for words in each for p in problems_of(words, jobs)] for name, each in found.items()}
    assert not any(wrong.values()), wrong
    # Nothing was overlooked: Kubernetes starts Ray by itself, and only the job there has a command.
    assert [len(found[name]) for name in STARTING] == [4, 4, 0, 1, 0, 4, 2] and len(found["README.md"]) == 9
    assert problems_of(["ray", "start", "--haed"], jobs) == ["--haed"]
    assert problems_of(["ray", "strat"], jobs) == ["ray strat"]
    assert problems_of(["python", "jobs/train.py", "--amr", "x", "--hardware", "cluster"], jobs) == ["--amr"]


def test_settings_in_commands_load() -> None:
    """The job of Kubernetes with its files; what is laid over is not lost."""
    (words,) = commands(text_of("kuberay-rayjob.yaml"))
    files = [str(ROOT / word.removeprefix(CODE)) for word in words if word.endswith(".yaml")]
    config = load_config(files[0], files[1:])
    assert config.policy.engine.labels == {"part": "rollout"} and config.learner.labels == {"part": "learner"}
    assert not config.replay.labels, "the replay store is beside the driver: its files are"


def test_variables_of_ray_exist() -> None:
    """Ray reads the environment variables that the files set."""
    places = ("_private/authentication/*.py", "_private/*_test_utils.py", "_private/ray_constants.py", "scripts/*.py")
    files = [file for place in places for file in RAY.glob(place)]
    known = set(re.findall(r"RAY_[A-Z_]+", "".join(file.read_text() for file in files)))
    named = {variable for name in STARTING for variable in re.findall(r"\bRAY_[A-Z_]+", text_of(name))}
    assert named - known <= {"RAY_HEAD_IP"} and "RAY_AUTH_MODE" in named
    assert '"RAY_HEAD_IP"' in (RAY / "autoscaler/_private/util.py").read_text()


def pods(name: str) -> list[Tree]:
    spec = cluster_of(load(name))
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


@pytest.mark.parametrize("name", [n for n in MANIFESTS if n != "kuberay-storage.yaml"])
def test_pods_hold_together(name: str) -> None:
    """Mounts have volumes, claims are there, users and places are the image's, limits are requests, Ray is ours."""
    claim, pinned = load("kuberay-storage.yaml")["metadata"]["name"], requirements()["ray"]
    assert cluster_of(load(name))["rayVersion"] == pinned.partition("==")[2]
    for number, pod in enumerate(pods(name)):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        claims = [v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "emptyDir" not in v]
        shared = number == 0 or name == "kuberay-rayservice.yaml"  # the driver's folders, or those of all who serve
        assert claims == [claim] * shared
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == image_user()
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        places = {m["mountPath"] for m in container["volumeMounts"]} - {"/dev/shm"}
        assert places == {"/home/ray/.cache"} | ({CODE + "runs"} if shared else set()) and places <= image_folders()
        assert container["resources"]["requests"] == container["resources"]["limits"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_containers_hold_together(name: str) -> None:
    """Containers see what the machine mounts, at the places and for the user of the image."""
    config = load(name)
    volumes = [option.split()[1].split(":") for option in config["docker"]["run_options"] if "--volume" in option]
    assert {inside for _, inside in volumes} == {CODE + "runs", "/home/ray/.cache"} <= image_folders()
    before = "\n".join(config["initialization_commands"])
    assert all(f"chown {image_user()}:{image_user()}" in before and outside in before for outside, _ in volumes)
    (token,) = config["file_mounts"]
    assert str(Path(token).parent) in image_folders()
    # The defaults of the launcher would install a Ray over the image's.
    assert not any("ray-wheels" in command for command in check_launcher(config)["head_setup_commands"])
