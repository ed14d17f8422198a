"""The Serve application: what ``serve run``, ``serve deploy``, KubeRay's RayService and ``calibrated-rl serve`` import.

serve run calibrated_rl.serving.app:build run=runs/dev require_api_key=false
"""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.llm import build_llm_deployment

from calibrated_rl.serving.ingress import DialogueIngress
from calibrated_rl.serving.model_server import ModelServer, llm_config
from calibrated_rl.serving.settings import key_digests, serve_config, served_models


def build(arguments: Mapping[str, Any]) -> Application:
    """The application for ``ServeConfig`` in plain values.

    Raises:
        UserError: what is wrong with an argument, the run, a policy or its weights.
    """
    config = serve_config(arguments)
    digests = key_digests(config)
    _, models = served_models(config)
    handles = {
        model.name: build_llm_deployment(
            llm_config(model, config),
            deployment_cls=ModelServer,
            bind_kwargs={"model": model, "serve_config": config},
            override_serve_options={"name": model.name},
        )
        for model in models
    }
    ingress = serve.deployment(
        DialogueIngress, name="ingress", max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0},
        health_check_period_s=2, graceful_shutdown_timeout_s=120,
    )  # fmt: skip
    return ingress.bind(handles, dict(arguments), digests)
