"""The proxies of a run (``users/proxies/``): what each is fitted to, the fits, and how they speak.

The dialogues of the first held-out scenarios, on which policies and simulators are evaluated, belong to no proxy; the
rest is dealt out evenly, both views of a dialogue to the same proxy. Each is fitted once a run, in a process beside
training, or taken from an earlier run on this machine with the same inputs (``calibration/fit_cache.py``).
"""

import hashlib
import importlib.metadata
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from inspect import getfile
from pathlib import Path
from typing import Any

from calibrated_rl.calibration.fit_cache import FitCache
from calibrated_rl.chat import tokens
from calibrated_rl.components.component import build
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.endpoints.user import EndpointUser
from calibrated_rl.errors import Party, RolloutFailure, UserError
from calibrated_rl.rollout.conversation import stable_seed
from calibrated_rl.run.base_models import CACHE
from calibrated_rl.run.endpoint_users import endpoint_proxy
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.runtime.background import BackgroundWorker
from calibrated_rl.storage.checksums import check_checksums, write_checksums
from calibrated_rl.tasks.base import GuidingTask, Task, UserCheckingTask, secret_after
from calibrated_rl.users.proxies.base import Proxy

logger = logging.getLogger(__name__)

LEAST_DIALOGUES = 20
"""Of fewer no proxy learns to speak."""
MONITORED = 10
"""One in so many of a proxy's dialogues is for early stopping."""
DRAWS = 32
"""A reply that the task says nobody could give is drawn again, so often at most. A dialogue that is run again draws the
same ones: all arms are to meet the same user."""
FIT_TIMEOUT_S = 6 * 3600.0
"""For all fits of a run, which begin before it trains."""
FOLDER, FIT = "models/proxies", "fit.json"


def dialogue_of(log: Dialogue) -> str:
    """What all logged views of one dialogue have in common."""
    return str(log.annotations.get("dialogue", log.id))


def parts_of(logs: Sequence[Dialogue], names: Sequence[str], reserved: int) -> dict[str, list[Dialogue]]:
    """The logs of each proxy: none of a dialogue that is among the first ``reserved`` ones.

    Raises:
        UserError: too few dialogues would be left.
    """
    kept_back = {dialogue_of(log) for log in logs[:reserved]}
    dialogues = [name for name in dict.fromkeys(map(dialogue_of, logs)) if name not in kept_back]
    if len(dialogues) < LEAST_DIALOGUES * len(names):
        raise UserError(
            f"the held-out split leaves {len(dialogues)} dialogues for {len(names)} proxies, besides those that "
            f"policies and simulators are evaluated on; each needs at least {LEAST_DIALOGUES}: raise the split's size, "
            "or lower evaluation.scenarios and evaluation.logs"
        )
    owner = {dialogue: names[number % len(names)] for number, dialogue in enumerate(dialogues)}
    return {name: [log for log in logs if owner.get(dialogue_of(log)) == name] for name in names}


def reserved_logs(config: RunConfig) -> int:
    """How many of the first held-out logs belong to no proxy."""
    return max(config.evaluation.scenarios, config.evaluation.logs)


def build_proxy(settings: Mapping[str, Any], name: str, task: Task) -> Proxy:
    """A proxy that has not been fitted.

    Raises:
        UserError: its settings are not allowed.
    """
    values = {key: value for key, value in settings.items() if key != "model"}
    proxy: Proxy = build(str(settings["model"]), values, f"proxies.{name}", secret_after=secret_after(task))
    return proxy


def is_fitted(run_folder: Path, name: str) -> bool:
    """Whether the run in ``run_folder`` has the proxy ``name``."""
    return (run_folder / FOLDER / name / FIT).is_file()


class ProxyUser:
    """A proxy as the user that policies meet. Its draws are keyed by scenario and turn, so that all arms meet the same
    one; a reply that the task rules out is drawn again."""

    def __init__(self, name: str, proxy: Proxy, task: Task) -> None:
        self._name, self._proxy, self._task = name, proxy, task

    def reply(self, scenario: Scenario, turns: Sequence[Turn]) -> str:
        """What it says next.

        Raises:
            RolloutFailure: each of its draws is empty, or one that the task rules out.
        """
        key = f"{self._name}/{scenario.id}/{len(turns)}"
        begin = self._task.must_begin(scenario, turns) if isinstance(self._task, GuidingTask) else ""
        for draw in range(DRAWS):
            text = self._proxy.reply(scenario, turns, stable_seed(key, draw), begin)
            said = (*turns, Turn(side=Side.USER, text=text, source=Source.SCRIPTED))
            ruled_out = isinstance(self._task, UserCheckingTask) and self._task.against_goal(scenario, said)
            if text.strip() and not ruled_out:
                return text
        raise RolloutFailure("user_against_goal", Party.USER)


class Proxies:
    """The proxies of one run."""

    def __init__(self, inputs: RunInputs) -> None:
        self._inputs = inputs
        users = {name: endpoint_proxy(inputs, name) for name in inputs.config.proxies}
        self._behind_endpoints = {name: user for name, user in users.items() if user is not None}
        """Nothing is fitted for these."""
        self._settings = {n: own for n, own in inputs.config.proxies.items() if n not in self._behind_endpoints}
        self._folder = inputs.folder / FOLDER
        self._worker: BackgroundWorker | None = None
        self._fits: dict[str, Any] = {}
        self._users: dict[str, ProxyUser] = {}

    def start_fitting(self) -> None:
        """Fit those that are not there, one after the other in a process of their own, which is not waited for. Ray
        must be running."""
        if not self._settings:
            return
        logs = self._inputs.logs[Split.HELD_OUT]
        parts = parts_of(logs, list(self._settings), reserved_logs(self._inputs.config))
        for name, part in parts.items():
            if is_fitted(self._inputs.folder, name):
                continue
            proxy = build_proxy(self._settings[name], name, self._inputs.task)
            key = _key(self._settings[name], proxy, part, secret_after(self._inputs.task))
            if self._inputs.config.reuse_fits and FitCache(CACHE / "fits").take(key, self._folder / name):
                logger.info(f"proxy {name}: an earlier run on this machine did the same fit; reusing it")
                continue
            self._worker = self._worker or BackgroundWorker()
            self._fits[name] = (key, self._worker.run(_fit, proxy, part))

    def users(self) -> dict[str, ProxyUser | EndpointUser]:
        """All of them by name, fitted; waits for it.

        Raises:
            PartLost: the process that fits them died.
            UserError: the files of one are missing or altered, or as a proxy's ``fit``.
        """
        for name, (key, reference) in self._fits.items():
            assert self._worker is not None, "who has a fit has a worker"
            ((files, metrics),) = self._worker.fetch([reference], FIT_TIMEOUT_S)
            self._write(name, files, metrics)
            if self._inputs.config.reuse_fits:
                FitCache(CACHE / "fits").keep(key, self._folder / name)
            logger.info(f"proxy {name}: {', '.join(f'{key} {value:.4g}' for key, value in metrics.items())}")
        self._fits = {}
        self.close()
        if not self._users:
            self._users = {name: self._loaded(name) for name in self._settings}
        all_users = self._users | self._behind_endpoints
        return {name: all_users[name] for name in self._inputs.config.proxies}

    def close(self) -> None:
        """End the process that fits; unfinished fits are lost."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _write(self, name: str, files: Mapping[str, bytes], metrics: Mapping[str, float]) -> None:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        write_checksums(folder)
        (folder / FIT).write_text(json.dumps(metrics), encoding="utf-8")

    def _loaded(self, name: str) -> ProxyUser:
        folder = self._folder / name
        check_checksums(folder)
        proxy = build_proxy(self._settings[name], name, self._inputs.task)
        proxy.load(folder)
        return ProxyUser(name, proxy, self._inputs.task)


def _fit(proxy: Proxy, logs: Sequence[Dialogue]) -> tuple[dict[str, bytes], dict[str, float]]:
    """Fit ``proxy``; returns its files and the metrics of the fit."""
    import torch

    torch.set_num_threads(1)  # the same sums on every machine
    dialogues = list(dict.fromkeys(map(dialogue_of, logs)))
    monitored = set(dialogues[::MONITORED])
    train = [log for log in logs if dialogue_of(log) not in monitored]
    monitor = [log for log in logs if dialogue_of(log) in monitored]
    metrics = proxy.fit(train, monitor, 0, lambda step, steps: None)
    with tempfile.TemporaryDirectory() as folder:
        proxy.save(Path(folder))
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}, metrics


def _key(settings: Mapping[str, Any], proxy: Proxy, logs: Sequence[Dialogue], secret: str) -> str:
    """Digest of all that bears on a fit."""
    import torch

    modules = {Path(getfile(tokens))} | {Path(getfile(base)) for base in type(proxy).__mro__ if issubclass(base, Proxy)}
    for module in (Proxy, type(proxy)):
        modules |= {Path(__file__), *Path(getfile(module)).parent.glob("*.py")}
    content = [
        dict(settings), secret, torch.backends.cpu.get_cpu_capability(),
        [importlib.metadata.version(package) for package in ("torch", "numpy")],
        [file.read_text(encoding="utf-8") for file in sorted(modules)],
        [
            [dialogue_of(log), log.scenario.user_instructions, dict(log.scenario.goal),
             [(turn.side.value, turn.text) for turn in log.turns]]
            for log in logs
        ],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
