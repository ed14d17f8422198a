"""Serve a run's policy (and its user simulator) behind OpenAI-compatible endpoints, with a chat page, on Ray Serve.

    python jobs/serve.py runs/dev [--policy calibrated-0] [--simulator calibrated] [--port 8000]

Then, with any OpenAI client: base_url=http://127.0.0.1:8000/v1, model="policy". The server puts the task's instructions
and greeting before what the client sends; `metadata: {"scenario": "3"}` names another held-out scenario than the first.
On other than local addresses, an API key is needed: set CALIBRATED_RL_API_KEY. Ctrl-C stops.

    python jobs/serve.py runs/dev --policy calibrated-1 --roll-out

replaces the policy of a server that is running on this cluster, without dropping a request.
"""

import argparse
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from calibrated_rl.cli import command
from calibrated_rl.errors import PartLost, UserError
from calibrated_rl.settings.fields import Positive, Range

APPLICATION = "calibrated_rl"
IMPORT_PATH = "calibrated_rl.serving.app:build"
START_TIMEOUT_S = 1800.0
ADDRESS_FILE = ".serving-address"
"""In the run folder, while `serve` runs on a Ray of its own: for `--roll-out`."""


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the run, e.g. policy.sampling.temperature=0"
    )
    parser.add_argument("--policy", default="", metavar="ARM-SEED", help="default: the run's calibrated policy")
    parser.add_argument(
        "--simulator", type=command.allowed(Literal["none", "calibrated", "uncalibrated"]), default="none",
        metavar="{none,calibrated,uncalibrated}", help="serve the user simulator, too (default: none)",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=command.allowed(Annotated[int, Range(at_least=1, at_most=65535)]),
        default=8000,
        help="port to listen on (default: 8000)",
    )
    replicas = command.allowed(Positive)
    parser.add_argument("--replicas", type=replicas, default=1, metavar="N", help="fewest of each model (default: 1)")
    parser.add_argument(
        "--max-replicas", type=replicas, default=0, metavar="N", help="most of each model (default: as --replicas)"
    )
    parser.add_argument(
        "--hardware", type=command.allowed(Literal["run", "auto", "cpu", "one_gpu", "cluster"]), default="run",
        metavar="{run,auto,cpu,one_gpu,cluster}", help="settings for hardware (default: those of the run)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=command.result_folder, default=None, metavar="FOLDER",
        help="keep dialogues here that people agreed to have kept (default: keep none)",
    )  # fmt: skip
    parser.add_argument(
        "--roll-out",
        action="store_true",
        help="replace the policy (or simulator) of the server that is running for RUN, and return once it serves",
    )
    return parser.parse_intermixed_args()


def main() -> None:
    arguments = parse()
    from calibrated_rl.serving.settings import key_digests, serve_config, served_models

    settings = application_arguments(arguments)
    config = serve_config(settings)
    run, models = served_models(config)  # mistakes come to light before anything starts
    weights = {model.name: model.weights for model in models}
    if arguments.roll_out:
        roll_out(arguments, weights)
        return
    key_digests(config)
    refuse_taken_port(arguments.host, arguments.port)
    from calibrated_rl.run.saved_run import check_engines_fit

    check_engines_fit({f"{model.name}": (model.config.engine, model.folder) for model in models})
    serve_until_stopped(arguments, settings, weights)


def application_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """``ServeConfig`` in plain values."""
    hardware = [] if arguments.hardware == "run" else command.hardware(arguments.hardware)
    settings: dict[str, Any] = {
        "run": str(arguments.run.resolve()),
        "policy": arguments.policy,
        "simulator": arguments.simulator,
        "min_replicas": arguments.replicas,
        "max_replicas": arguments.max_replicas or arguments.replicas,
        "require_api_key": not is_local(arguments.host),
        "keep_dialogues": str(arguments.keep.resolve()) if arguments.keep else "",
        "overrides": [*hardware, *arguments.overrides],
    }
    return settings


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``.

    Raises:
        UserError: it is no address of this machine.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}") from error
    return all(ipaddress.ip_address(each[4][0]).is_loopback for each in found)


def refuse_taken_port(host: str, port: int) -> None:
    """
    Raises:
        UserError: nothing can listen there.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UserError(f"--port {port} on {host}: {error.strerror}; choose another one") from error


def schema(settings: dict[str, Any], weights: dict[str, str]) -> Any:
    """What ``serve deploy`` would read from a file."""
    from ray.serve.schema import ServeDeploySchema

    deployments = [{"name": name, "user_config": {"weights": chosen}} for name, chosen in weights.items()]
    application = {
        "name": APPLICATION, "route_prefix": "/", "import_path": IMPORT_PATH, "args": settings,
        "deployments": deployments,
    }  # fmt: skip
    return ServeDeploySchema.model_validate({"applications": [application]})


def serve_until_stopped(arguments: argparse.Namespace, settings: dict[str, Any], weights: dict[str, str]) -> None:
    """Start the application and wait for Ctrl-C or SIGTERM; requests in flight are finished then."""
    import ray
    from ray import serve

    command.start_ray()
    print(f"starting {' and '.join(weights)}: one engine takes half a minute or so", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    address = arguments.run / ADDRESS_FILE
    serve.start(http_options={"host": arguments.host, "port": arguments.port}, proxy_location="HeadOnly")
    try:
        deploy(schema(settings, weights))
        wait_until(lambda: is_running(weights), stop)
        if stop.is_set():
            return
        address.write_text(ray.get_runtime_context().gcs_address, encoding="utf-8")
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        where = f"http://{host}:{arguments.port}"
        chosen = ", ".join(f"{name}: {which}" for name, which in weights.items())
        print(f"serving {chosen}\nendpoint: {where}/v1\nchat page: {where}/\nCtrl-C stops", flush=True)
        while not stop.wait(1.0):
            pass
        print("stopping: requests in flight are finished", flush=True)
    finally:
        address.unlink(missing_ok=True)
        serve.shutdown()
        ray.shutdown()


def deploy(config: Any) -> None:
    """Hand ``config`` to Serve's controller, as ``serve deploy`` does; what is unchanged in it goes on running."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None, "Serve has been started"
    client.deploy_apps(config)


def is_running(weights: dict[str, str]) -> bool:
    """Whether all of the application runs.

    Raises:
        PartLost: it cannot; says why.
    """
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return False
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        parts = [part.message for part in application.deployments.values() if part.message]
        raise PartLost(f"the application did not start: {application.message or '; '.join(parts)}"[:2000])
    return bool(application.status == "RUNNING")


def wait_until(done: Any, stop: threading.Event | None = None, timeout_s: float = START_TIMEOUT_S) -> None:
    """
    Raises:
        PartLost: it took longer than ``timeout_s``.
    """
    end = time.monotonic() + timeout_s
    while not done():
        if stop is not None and stop.wait(0.5):
            return
        if stop is None:
            time.sleep(0.2)
        if time.monotonic() > end:
            raise PartLost(f"the application is not running after {timeout_s:.0f} s")


def roll_out(arguments: argparse.Namespace, weights: dict[str, str]) -> None:
    """Hand other weights to the models that are served.

    Raises:
        UserError: no server of this run can be found.
    """
    import ray
    from ray import serve

    file = arguments.run / ADDRESS_FILE
    if "RAY_ADDRESS" not in os.environ and not file.is_file():
        raise UserError(f"no server of {arguments.run} runs on this machine; for one on a cluster, set RAY_ADDRESS")
    address = os.environ.get("RAY_ADDRESS") or file.read_text(encoding="utf-8").strip()
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise UserError(f"the server's Ray at {address} cannot be reached: {error}") from error
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    running = None if client is None else client.get_serve_details().get("applications", {}).get(APPLICATION)
    if not running or not running.get("deployed_app_config"):
        raise UserError(f"Ray at {address} serves no application of calibrated_rl")
    config = running["deployed_app_config"]
    served = Path(config["args"]["run"])
    if served.resolve() != arguments.run.resolve():
        raise UserError(f"the server there serves {served}, not {arguments.run}")
    known = {part["name"]: part for part in config.get("deployments", [])}
    for name, chosen in weights.items():
        if name not in known:
            raise UserError(f"the server does not serve a {name}")
        known[name]["user_config"] = {"weights": chosen}
    from ray.serve.schema import ServeDeploySchema

    deploy(ServeDeploySchema.model_validate({"applications": [config]}))
    handles = {name: serve.get_deployment_handle(name, APPLICATION) for name in weights}

    def has_all() -> bool:
        is_running(weights)
        return all(handles[name].weights.remote().result(timeout_s=60) == chosen for name, chosen in weights.items())

    wait_until(has_all, timeout_s=600.0)
    wait_until(lambda: is_running(weights), timeout_s=600.0)  # all replicas, not only the one that answered
    print(f"rolled out {', '.join(f'{name}: {chosen}' for name, chosen in weights.items())}", file=sys.stdout)
    ray.shutdown()
