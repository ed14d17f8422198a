"""The manifest that serves a policy: Ray Serve and the application know what it says; a config trains the policy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.serving.settings import API_KEY, serve_config
from tests.support.cluster_files import CODE, ROOT, load


def applications(text: str) -> list[Any]:
    """Those of a service's configuration, as Ray Serve reads them, with the arguments as their builder does."""
    from ray.serve.schema import ServeDeploySchema

    found = ServeDeploySchema(**yaml.safe_load(text)).applications
    for application in found:
        module, _, function = application.import_path.partition(":")
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), application.import_path
        assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
        serve_config(application.args)
        for deployment in application.deployments:
            assert deployment.name in ("policy", "simulator", "ingress")
            assert set(deployment.user_config) == {"weights"}
    return found


def test_service_is_known_to_ray_and_to_the_application() -> None:
    text = load("kuberay-rayservice.yaml")["spec"]["serveConfigV2"]
    assert len(applications(text)) == 1
    for right, wrong in (
        ("import_path", "import_paths"), ("serving.app:build", "serving.app:built"), ("max_replicas", "most_replicas"),
        ("simulator: none", "simulator: tame"), ("- name: policy", "- name: policies"), ("weights:", "weight:"),
        ("max_replicas: 2", "max_replicas: 0"),
    ):  # fmt: skip
        assert right in text
        with pytest.raises((AssertionError, UserError, ValueError)):
            applications(text.replace(right, wrong))


def test_service_serves_a_policy_that_a_config_trains() -> None:
    service = load("kuberay-rayservice.yaml")
    (application,) = applications(service["spec"]["serveConfigV2"])
    config = serve_config(application.args)
    run = Path(config.run).relative_to(CODE + "runs").name
    trained = load_config(ROOT / "configs" / f"{run}.yaml", config.overrides)
    arm, _, seed = config.policy.rpartition("-")
    assert trained.name == run and arm in trained.arms and int(seed) in trained.seeds
    (deployment,) = application.deployments
    assert deployment.user_config == {"weights": config.policy}
    assert config.require_api_key
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["maxReplicas"] >= config.max_replicas
    assert trained.policy.engine.num_gpus == 1
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert API_KEY in [variable["name"] for variable in head["env"]]
