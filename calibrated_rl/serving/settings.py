"""The arguments of the Serve application, and what a run gives for them. Loads no engine and starts nothing."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import ModelConfig
from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError
from calibrated_rl.models.checks import check_folder
from calibrated_rl.run.memory import with_cache
from calibrated_rl.run.saved_run import SavedRun, open_run
from calibrated_rl.settings.fields import Name, NotAllowed, Pattern, Positive, Range, from_plain
from calibrated_rl.storage.checksums import check_checksums
from calibrated_rl.tasks.base import refuse_onlookers

POLICY, SIMULATOR = "policy", "simulator"
"""Names of the served models, of their deployments, and of the sections of the run's config."""
MOST_SCENARIOS = 1000

API_KEY = "CALIBRATED_RL_API_KEY"
NameOrNone = Annotated[str, Pattern(r"|\S(.*\S)?", "empty, or text without white space around it")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What ``calibrated_rl.serving.app:build`` takes, from a Serve config file, ``serve run`` or ``calibrated-rl
    serve``."""

    run: Name
    """Folder of the run, such as `runs/dev`; every machine that serves must find it there."""
    policy: NameOrNone = ""
    """ARM-SEED, or the folder of one (with a slash), such as of another run of the same models; empty: the run's
    calibrated policy."""
    simulator: Literal["none", "calibrated", "uncalibrated"] = "none"
    """Serve the user simulator, too, as the model `simulator`."""
    min_replicas: Positive = 1
    """Fewest replicas of each model."""
    max_replicas: Positive = 1
    """Most replicas of each model; above `min_replicas`, Serve's autoscaler chooses by the requests in flight."""
    target_ongoing_requests: Positive = 64
    """Requests in flight on a replica above which the autoscaler adds one."""
    api_key_env: Annotated[str, Pattern(r"[A-Za-z_]\w*", "the name of an environment variable")] = API_KEY
    """Environment variable that holds the API key, or several, separated by commas. Where it is not set, requests
    need none, which is for addresses of this machine alone."""
    require_api_key: bool = True
    """Refuse to start without an API key. Only `calibrated-rl serve` on a local address turns this off."""
    scenarios: Annotated[int, Range(at_least=1, at_most=MOST_SCENARIOS)] = 20
    """How many held-out scenarios requests and the chat page can choose from."""
    keep_dialogues: NameOrNone = ""
    """Folder for dialogues that people agreed to keep, as JSON Lines for `calibrated_rl.logs.jsonl:JsonLines`;
    empty: none are kept, and the page does not ask."""
    chat_page: bool = True
    """Serve the chat page at `/`."""
    overrides: list[Name] = field(default_factory=list)
    """Settings of the run to change, as key=value, such as `policy.sampling.temperature=0` or a hardware file."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the application."""

    name: str
    """``policy`` or ``simulator``."""
    side: Side
    config: ModelConfig
    folder: Path
    """In Hugging Face format, with checksums."""
    weights: str
    """What was chosen: ARM-SEED, ``calibrated`` or ``uncalibrated``."""


def serve_config(arguments: Mapping[str, Any]) -> ServeConfig:
    """The typed form of an application's ``args``. Values may be text, as ``serve run app key=value`` gives them.

    Raises:
        UserError: an argument is unknown or not allowed; names it.
    """
    try:
        config = from_plain(ServeConfig, arguments)
    except NotAllowed as refused:
        raise UserError("; ".join(map(str, refused.problems))) from refused
    assert isinstance(config, ServeConfig)
    if config.max_replicas < config.min_replicas:
        raise UserError(f"max_replicas is {config.max_replicas}, below min_replicas ({config.min_replicas})")
    return config


def served_models(config: ServeConfig) -> tuple[SavedRun, list[ServedModel]]:
    """The run, and the models to serve, their weights checked.

    Raises:
        UserError: no such run, policy or simulator; weights without checksums, or that differ from them; a task in
            which a part of what the policy says is secret.
    """
    run = open_run(Path(config.run), config.overrides)
    refuse_onlookers(run.task())
    weights = config.policy or run.policy().name
    folder = weights_folder(run, POLICY, weights)
    models = [ServedModel(POLICY, Side.POLICY, run.config.policy, folder, weights)]
    if config.simulator != "none":
        folder = weights_folder(run, SIMULATOR, config.simulator)
        models.append(ServedModel(SIMULATOR, Side.USER, run.config.simulator, folder, config.simulator))
    return run, [
        replace(model, config=with_cache(model.config, model.folder, model.config.engine.max_num_seqs))
        for model in models
    ]


def simulator_folder(run: SavedRun, name: str) -> Path:
    """Where the run keeps its simulator.

    Raises:
        UserError: it has none of this name.
    """
    if name == "uncalibrated" and not (run.folder / "models" / name).is_dir():
        # It was not pretrained by the run: the simulator's own model is the uncalibrated one.
        return run.model("simulator_base")
    return run.model(name)


def weights_folder(run: SavedRun, model: str, weights: str) -> Path:
    """The folder of ``weights`` for the served ``model``: ARM-SEED, a simulator's name, or the path of a folder.

    Raises:
        UserError: there are no such weights, or they are not whole.
    """
    if os.sep in weights:
        folder = Path(weights)
        check_folder(folder, weights)
    else:
        folder = run.policy(weights).folder if model == POLICY else simulator_folder(run, weights)
    return checked(folder)


OF_THE_MODEL = ("config.json", "tokenizer.json", "chat_template.jinja")
"""Files in which weights that replace others may not differ from them."""


def refuse_another_model(served: Path, newer: Path) -> None:
    """
    Raises:
        UserError: ``newer`` has another shape, tokenizer or chat template than the model in ``served``, so that more
            than weights would have to be replaced.
    """
    for name in OF_THE_MODEL:
        one, other = ((folder / name).read_bytes() if (folder / name).is_file() else None for folder in (served, newer))
        if one != other:
            raise UserError(f"{newer} is another model than {served}: {name} differs; start a server of its own for it")


def checked(folder: Path) -> Path:
    """``folder``, if all files in it are as their checksums say.

    Raises:
        UserError: it has no checksums, or a file differs.
    """
    check_checksums(folder)
    return folder


def key_digests(config: ServeConfig) -> list[str]:
    """SHA-256 of each API key, in hexadecimal: Serve keeps an application's arguments where others may read them.

    Raises:
        UserError: a key is required and there is none, or one is short.
    """
    keys = [key.strip() for key in os.environ.get(config.api_key_env, "").split(",") if key.strip()]
    if config.require_api_key and not keys:
        raise UserError(
            f"no API key: set the environment variable {config.api_key_env} where the application is built (the head "
            "of the cluster), or serve on a local address with `calibrated-rl serve`"
        )
    if any(len(key) < 16 for key in keys):
        raise UserError(f"an API key in {config.api_key_env} has less than 16 characters")
    return [digest(key) for key in keys]


def digest(key: str) -> str:
    """SHA-256 of ``key`` in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


def chat_settings(run: RunConfig, model: ServedModel) -> dict[str, Any]:
    """What ``ChatTokens`` needs beside the tokenizer, in plain values."""
    return {"name": model.name, "settings": dict(model.config.chat_template_kwargs), "date": run.date}
