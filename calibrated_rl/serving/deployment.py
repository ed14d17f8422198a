"""Starting, changing and stopping the application on Ray Serve, from a process of a user's.

The application is described as ``serve deploy`` would read it from a file, so that what is unchanged in a new
description keeps running.
"""

import copy
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibrated_rl.errors import PartLost, UserError
from calibrated_rl.serving.control import Mailbox
from calibrated_rl.serving.settings import refuse_another_model, serve_config, served_models, weights_folder

logger = logging.getLogger(__name__)

APPLICATION = "calibrated_rl"
IMPORT_PATH = "calibrated_rl.serving.app:build"
START_TIMEOUT_S = 1800.0
ROLL_OUT_TIMEOUT_S = 600.0
WAIT_LINE_S = 30.0
Weights = Mapping[str, str]
"""Of each served model, as ``settings.weights_folder`` understands them."""


def description(settings: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The application: ``ServeConfig`` in plain values, and the weights that its models have."""
    deployments = [{"name": name, "user_config": {"weights": chosen}} for name, chosen in weights.items()]
    return {
        "name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": dict(settings),
        "deployments": deployments,
    }  # fmt: skip


def serve_until_stopped(
    host: str, port: int, settings: Mapping[str, Any], weights: Weights, mailbox: Mailbox, ready: Callable[[], None]
) -> None:
    """Start the application and wait for SIGINT or SIGTERM; requests in flight are finished then.

    Args:
        mailbox: where requests to roll out other weights come from.
        ready: called once all models serve.

    Raises:
        PartLost: the application cannot start.
    """
    import ray
    from ray import serve

    from calibrated_rl.run.machine import start_ray

    mailbox.open()
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        start_ray()
        logger.info(f"starting {' and '.join(weights)}")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
        application = description(settings, weights)
        deploy(application)
        wait_until(is_running, START_TIMEOUT_S, stop)
        if not stop.is_set():
            ready()
        while not stop.wait(0.5):
            request = mailbox.request()
            if request is not None:
                mailbox.answer(_rolled_out(application, request["weights"]))
        logger.info("stopping: requests in flight are finished")
    finally:
        mailbox.close()
        if ray.is_initialized():
            serve.delete(APPLICATION)  # on a cluster, Serve itself may have other applications
            ray.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)


def _rolled_out(application: dict[str, Any], weights: Weights) -> str:
    """Roll out ``weights``; why that failed, or nothing."""
    try:
        roll_out(application, weights)
    except (UserError, PartLost) as error:
        logger.error(f"nothing is rolled out: {error}")
        return str(error)
    logger.info(f"rolled out {', '.join(f'{name} {chosen}' for name, chosen in weights.items())}")
    return ""


def roll_out_on_cluster(run: Path, weights: Weights) -> None:
    """Roll out ``weights`` in the application of ``run`` on the cluster that RAY_ADDRESS names.

    Raises:
        UserError: it cannot be reached, serves nothing of ours, or another run.
        PartLost: the application does not come back.
    """
    from calibrated_rl.run.machine import start_ray

    try:
        start_ray()
    except ConnectionError as error:
        raise UserError(f"the cluster cannot be reached: {error}") from error
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    details = client.get_serve_details() if client is not None else {}
    application = (details.get("applications", {}).get(APPLICATION) or {}).get("deployed_app_config")
    if not application:
        raise UserError(f"the cluster serves no application called {APPLICATION}")
    served_run = Path(application["args"]["run"])
    if served_run.name != run.resolve().name:
        raise UserError(f"the cluster serves {served_run}, not {run}")
    roll_out(application, weights)


def roll_out(application: dict[str, Any], weights: Weights) -> None:
    """Let the models of a running ``application`` replace their weights; ``application`` is changed, too.

    Raises:
        UserError: it has no such model, or the weights are of another one; nothing has been changed.
        PartLost: a replica cannot take them; all are told to go back to those that they had.
    """
    from ray import serve

    from calibrated_rl.serving.model_handle import ModelHandle

    run, models = served_models(serve_config(application["args"]))
    for model in models:
        if model.name in weights:
            refuse_another_model(model.folder, weights_folder(run, model.name, weights[model.name]))
    before = copy.deepcopy(application)
    parts = {part["name"]: part for part in application.get("deployments") or ()}
    for name in weights:
        if name not in parts:
            raise UserError(f"the server serves no {name}")
    for name, chosen in weights.items():
        parts[name]["user_config"] = {"weights": chosen}
    deploy(application)
    handles = {name: ModelHandle(serve.get_deployment_handle(name, APPLICATION)) for name in weights}

    def is_there() -> bool:
        # One replica answers at a time; that all have them is what the application's status says.
        return all(handles[name].weights_within(60) == chosen for name, chosen in weights.items()) and is_running()

    try:
        wait_until(is_there, ROLL_OUT_TIMEOUT_S)
    except PartLost:
        application.update(before)
        deploy(application)
        raise


def deploy(application: Mapping[str, Any]) -> None:
    """Hand the description to Serve's controller."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client()
    assert client is not None, "Serve has been started"
    client.deploy_apps(ServeDeploySchema.model_validate({"applications": [dict(application)]}))


def is_running() -> bool:
    """Whether all of the application runs as it was described last.

    Raises:
        PartLost: it cannot; says why.
    """
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return False
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        reasons = [part.message for part in application.deployments.values() if part.message]
        raise PartLost(f"the application does not serve: {application.message or '; '.join(reasons)}"[:2000])
    return bool(application.status == "RUNNING")


def wait_until(done: Callable[[], bool], timeout_s: float, stop: threading.Event | None = None) -> None:
    """Wait until ``done``, or until ``stop`` is set.

    Raises:
        PartLost: it took longer than ``timeout_s``.
    """
    stop = stop or threading.Event()
    began = told = time.monotonic()
    while not stop.is_set() and not done():
        stop.wait(0.5)
        now = time.monotonic()
        if now - told >= WAIT_LINE_S:
            logger.info(f"waiting for the replicas ({now - began:.0f} s)")
            told = now
        if now - began > timeout_s:
            raise PartLost(f"the application is not running after {timeout_s:.0f} s")
