"""The manifest that serves a policy: Ray Serve, its LLM part and vLLM know what it says, and a config trains it."""

import ast
from pathlib import Path

import pytest
import yaml

from calibrated_rl.config.run_config import load_config
from tests.support.cluster_files import CODE, RAY, ROOT, Tree, load


def fields_of(file: Path, name: str) -> set[str]:
    """Annotated fields of a class and of its bases in the same file, from the source: importing takes long."""
    classes = {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}
    node = classes[name]
    annotated = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
    fields = {target.id for target in annotated if isinstance(target, ast.Name)}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= fields_of(file, base.id)
    return fields


def vllm_fields() -> set[str]:
    from importlib.util import find_spec

    spec = find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    return fields_of(Path(spec.submodule_search_locations[0]) / "engine" / "arg_utils.py", "AsyncEngineArgs")


def unknown_in_service(serve: Tree) -> list[str]:
    """What Ray Serve, ``ray.serve.llm`` or vLLM does not know of a service's configuration."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    llm = RAY / "llm/_internal/serve/core"
    wrong = []
    for application in ServeDeploySchema(**serve).applications:
        module, _, function = application.import_path.partition(":")
        source = RAY.parent / module.replace(".", "/") / "__init__.py"
        functions = {node.name for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)}
        wrong += [function] if function not in functions else []
        wrong += list(application.args.keys() - fields_of(llm / "ingress/builder.py", "LLMServingArgs"))
        for model in application.args["llm_configs"]:
            wrong += list(model.keys() - fields_of(llm / "configs/llm_config.py", "LLMConfig"))
            loading = fields_of(llm / "configs/llm_config.py", "ModelLoadingConfig")
            wrong += list(model["model_loading_config"].keys() - loading)
            wrong += list(model["engine_kwargs"].keys() - vllm_fields())
            deployment = fields_of(RAY / "serve/_private/config.py", "DeploymentConfig")
            wrong += list(model["deployment_config"].keys() - deployment)
            AutoscalingConfig(**model["deployment_config"]["autoscaling_config"])
    return wrong


def test_service_is_known_to_ray() -> None:
    text = load("kuberay-rayservice.yaml")["spec"]["serveConfigV2"]
    assert unknown_in_service(yaml.safe_load(text)) == []
    for right, wrong in (
        ("build_openai_app", "build_open_ai_app"),
        ("model_source", "model_sauce"),
        ("max_model_len", "max_model_length"),
        ("deployment_config", "deployment_configs"),
    ):
        with pytest.raises((AssertionError, KeyError)):
            assert unknown_in_service(yaml.safe_load(text.replace(right, wrong))) == []
    for right, wrong in (("import_path", "import_paths"), ("min_replicas: 1", "min_replicas: -1")):
        with pytest.raises(ValueError):
            unknown_in_service(yaml.safe_load(text.replace(right, wrong)))


def test_service_serves_a_policy_that_a_config_trains() -> None:
    service = load("kuberay-rayservice.yaml")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    (model,) = application["args"]["llm_configs"]
    run, policies, policy = Path(model["model_loading_config"]["model_source"]).relative_to(CODE + "runs").parts
    config = load_config(ROOT / "configs" / f"{run}.yaml")
    arm, _, seed = policy.rpartition("-")
    assert (policies, config.name) == ("policies", run) and arm in config.arms and int(seed) in config.seeds
    assert model["engine_kwargs"]["max_model_len"] == config.policy.engine.max_model_len
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["maxReplicas"] >= model["deployment_config"]["autoscaling_config"]["max_replicas"]
