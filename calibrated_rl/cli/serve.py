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
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from calibrated_rl.cli import command
from calibrated_rl.errors import UserError
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Positive, Range

logger = logging.getLogger(__name__)


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, such as runs/dev")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the run, e.g. policy.sampling.temperature=0"
    )
    parser.add_argument(
        "--policy",
        default="",
        metavar="ARM-SEED|FOLDER",
        help="default: the run's calibrated policy; or the folder of one",
    )
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
    from calibrated_rl.run.saved_run import check_engines_fit
    from calibrated_rl.serving import deployment
    from calibrated_rl.serving.control import Mailbox
    from calibrated_rl.serving.settings import key_digests, serve_config, served_models

    settings = application_arguments(arguments)
    config = serve_config(settings)
    _, models = served_models(config)  # mistakes come to light before anything starts
    weights = {model.name: model.weights for model in models}
    chosen = ", ".join(f"{name} {which}" for name, which in weights.items())
    mailbox = Mailbox(arguments.run)
    if arguments.roll_out:
        if "RAY_ADDRESS" in os.environ:
            deployment.roll_out_on_cluster(arguments.run, weights)
        else:
            mailbox.ask({"weights": weights}, deployment.ROLL_OUT_TIMEOUT_S)
        console.result(f"rolled out {chosen}")
        return
    key_digests(config)
    refuse_taken_port(arguments.host, arguments.port)
    check_engines_fit({model.name: (model.config.engine, model.folder) for model in models})
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    address = f"http://{host}:{arguments.port}"

    def serving() -> None:
        console.result(f"serving {chosen}\nendpoint: {address}/v1\nchat page: {address}/\nCtrl-C stops")

    deployment.serve_until_stopped(arguments.host, arguments.port, settings, weights, mailbox, serving)


def application_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """``ServeConfig`` in plain values."""
    from calibrated_rl.run.machine import hardware_file

    hardware = [] if arguments.hardware == "run" else [hardware_file(arguments.hardware)]
    policy = arguments.policy
    return {
        "run": str(arguments.run.resolve()),
        "policy": str(Path(policy).resolve()) if os.sep in policy else policy,
        "simulator": arguments.simulator,
        "min_replicas": arguments.replicas,
        "max_replicas": arguments.max_replicas or arguments.replicas,
        "require_api_key": not is_local(arguments.host),
        "keep_dialogues": str(arguments.keep.resolve()) if arguments.keep else "",
        "overrides": [*hardware, *arguments.overrides],
    }


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that listens on ``host``.

    Raises:
        UserError: it is no address.
    """
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: {getattr(error, 'strerror', None) or error}") from error
    return all(ipaddress.ip_address(address[4][0]).is_loopback for address in addresses)


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
