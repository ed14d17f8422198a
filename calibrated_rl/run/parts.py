"""Everything a run has started: engines, learner, replay store, task, people, logs; shared by all arms."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayActorError
from safetensors.torch import load_file

from calibrated_rl.calibration.base import CalibrationMethod
from calibrated_rl.calibration.checked import build_method
from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.calibration.kept_fits import LARGEST_MIB, KeptFits, key_of
from calibrated_rl.calibration.sft import fine_tune, log_samples, some_of
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.config.checks import log_settings
from calibrated_rl.config.run_config import ModelConfig, ProxyConfig, RunConfig
from calibrated_rl.data.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.errors import PartLost, first_line, is_no_room
from calibrated_rl.inference.elastic import Elastic
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.waves import WaveGate
from calibrated_rl.learner.config import OptimizerConfig
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.losses.check import resolve_loss
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR, START
from calibrated_rl.learner.supported import check_model_folder
from calibrated_rl.logs.base import LogReader, summed_up
from calibrated_rl.logs.checked import build_reader
from calibrated_rl.models.folders import with_template
from calibrated_rl.models.resolve import check_context, make_tiny, read_tokenizer, resolve_model
from calibrated_rl.replay.actor import start_store
from calibrated_rl.replay.schema import from_table, to_table
from calibrated_rl.rollout.collector import Collector, set_aside_what_is_loaded
from calibrated_rl.rollout.context import check_room, room_for
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.rollout.parity import check_parity
from calibrated_rl.run.log_checks import check_judging, check_logs
from calibrated_rl.run.memory import check_memory
from calibrated_rl.run.memory_plan import engines_to_plan, rehearsed, with_caches
from calibrated_rl.runtime.background import BesideTraining, Scribe
from calibrated_rl.runtime.capacity import Need, wait_for_machines
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.shift.compare_sets import check_names
from calibrated_rl.storage.files import SHARED, wait_for_room
from calibrated_rl.storage.run_copy import RunCopy
from calibrated_rl.tasks.base import ScriptedHuman, Task
from calibrated_rl.tasks.checked import build_human, build_task

STORE_TIMEOUT_S = 300.0
LOGS_FOR_PARITY = 64
"""Among so many logs the longest is looked for at the start."""
CACHE = Path(SHARED).expanduser()


def copy_of_run(config: RunConfig, folder: Path) -> RunCopy | None:
    """Access to the copy of the run in ``training.checkpoint_store``; None where that names no store."""
    training = config.training
    if not training.checkpoint_store:
        return None
    return RunCopy(training.checkpoint_store, config.name, folder, max(2, training.checkpoints_kept))


class Parts:
    """The running system."""

    def __init__(self, config: RunConfig, folder: Path, progress: Progress, *, training: bool = True) -> None:
        """Read what the run is of. ``training`` is False where a run that is there already is judged or talked to:
        its logs need not do for what training takes.

        Raises:
            UserError: task, logs, models or settings do not allow the run.
        """
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # one bar at a time, and it is ours
        self.config, self.folder, self.progress, self.say = config, folder, progress, progress.say
        self.task: Task = build_task(config.task, config.task_config, "task_config")
        self.human: ScriptedHuman | None = (
            build_human(config.human, config.human_config, "human_config", self.task) if config.human else None
        )
        self.pools: list[ReplicaPool] = []
        self._started = ExitStack()
        self.scribe = Scribe(self.say)
        self._copy: RunCopy | None = None
        self._parity: dict[str, float] | None = None
        self.served_simulator: Path | None = None
        """Folder of the simulator that the replicas have."""
        self.judge: ScriptedHuman | ReplicaPool | None = self.human
        """Whom policies meet when they are judged."""
        self.calibration: CalibrationMethod = build_method(
            config.calibration.method, config.calibration.method_config, "calibration.method_config"
        )
        check_names(config.shift.estimators)
        reader: LogReader = build_reader(str(config.logs["reader"]), log_settings(config), "logs", self.task)
        self.logs = {split: reader.read(split) for split in Split}
        if config.human or config.proxy.model:
            check_judging(self.task, config.evaluation)
        if training:
            check_logs(config, self.task, self.logs)
        kept = max(0, len(self.logs[Split.CALIBRATION]) - config.calibration.reserve)
        self.reserve = self.logs[Split.CALIBRATION][kept:]
        """Logs that only the arm ``calibrated_more_logs`` sees."""
        self.logs[Split.CALIBRATION] = self.logs[Split.CALIBRATION][:kept]
        for line in summed_up(reader.problems):
            self.say(line)
        self.at_start: dict[tuple[str, ...], NDArray[np.float32]] = {}
        """What ``log_probs_at_start`` has computed, by id and turns of the log."""
        self._prepare_models()
        self._check_context()

    # ---- start -------------------------------------------------------------------------------------

    def _prepare_models(self) -> None:
        """Make or find both base models, before any actor starts."""
        models = self.folder / "models"
        texts = [turn.text for log in self.logs[Split.CALIBRATION] for turn in log.turns]
        texts += [
            text
            for log in self.logs[Split.CALIBRATION]
            for text in (log.scenario.policy_instructions, log.scenario.user_instructions)
        ]
        self.upbringing_logs: dict[Split, list[Dialogue]] = {}
        if self.config.upbringing.human:
            values = dict(self.config.upbringing.logs) | {
                "human": self.config.upbringing.human,
                "human_config": self.config.upbringing.human_config,
            }
            raised = build_reader("calibrated_rl.logs.scripted:ScriptedLogs", values, "upbringing", self.task)
            self.upbringing_logs = {s: raised.read(s) for s in (Split.CALIBRATION, Split.MONITOR)}
        brought_up = [turn.text for log in self.upbringing_logs.get(Split.CALIBRATION, ()) for turn in log.turns]

        def find(side: ModelConfig | ProxyConfig, name: str, seed: int, texts: list[str]) -> Path:
            if side.model != "tiny":
                folder = resolve_model(side.model, CACHE, offline=False, chat_template=not side.chat_template)
            elif not ((folder := models / f"{name}_base") / "config.json").is_file():
                make_tiny(folder, texts, seed)
            if not side.chat_template:
                return folder
            # A hidden folder: links to a model are no part of the copy of a run (run_copy.py); the template is.
            kept, linked = self.folder / "templates" / f"{name}.jinja", models / f".{name}_with_template"
            return with_template(folder, side.chat_template, kept, linked, f"{name}.chat_template")

        self.policy_base = find(self.config.policy, POLICY, 0, texts)
        self.simulator_base = find(self.config.simulator, SIMULATOR, 1, texts + brought_up)
        if self.config.proxy.model:
            self.proxy_base = find(self.config.proxy, PROXY, 2, texts)

    def _check_context(self) -> None:
        """Read the tokenizers, and refuse models and settings that are too short for the logged dialogues."""
        def chat(
            role: str, base: Path, side: Side, config: ModelConfig | ProxyConfig, sampling: SamplingConfig
        ) -> ChatTokens:
            check_context(base, config.engine.max_model_len)
            check_model_folder(base, config.engine.max_model_len)
            tokens = ChatTokens(
                read_tokenizer(base, role), role, settings=config.chat_template_kwargs, date=self.config.date
            )
            if tokens.folds_instructions:
                self.say(f"{role}: the chat template has no role for instructions; they open the first user turn")
            if tokens.template.uses_date:
                self.say(f"{role}: the chat template prints the date; this run's is {tokens.template.day}")
            if tokens.may_think:
                key = f"{SIMULATOR if role == PROXY else role}.sampling.max_turn_tokens"
                self.say(f"{role}: may think before it speaks; {key} is {sampling.max_turn_tokens} for both together")
            needed = room_for(tokens, side, self.logs[Split.CALIBRATION], sampling.max_turn_tokens)
            check_room(role, config.engine.max_model_len, needed)
            return tokens

        policy, simulator, proxy = self.config.policy, self.config.simulator, self.config.proxy
        self.policy_chat = chat(POLICY, self.policy_base, Side.POLICY, policy, policy.sampling)
        self.simulator_chat = chat(SIMULATOR, self.simulator_base, Side.USER, simulator, simulator.sampling)
        if proxy.model:
            self.proxy_chat = chat(PROXY, self.proxy_base, Side.USER, proxy, simulator.sampling)

    def start(self) -> None:
        """Start all actors side by side, and bring the models to where training begins."""
        proxy = self.proxy_base if self.config.proxy.model else None
        check_memory(self.config, self.policy_base, self.simulator_base, proxy)
        gate = WaveGate() if self.config.deterministic else None
        self.say("starting two vLLM engines, the learner and the replay store")
        self.store, need = start_store(self.config.replay)
        self._started.callback(ray.kill, self.store)
        self.beside = BesideTraining()
        self._started.callback(self.beside.close)
        if planned := engines_to_plan(self.config):
            self._start_learner(need)
            device, others = rehearsed(self.config, self.learner, self._models())
            self.config = with_caches(self.config, self._models(), self.say, device, others)
        config = self.config
        self.policy, self.simulator = (
            self._pool(role, str(base), chat, side.engine, replicas=side.replicas, gate=gate)
            for role, base, chat, side in (
                (POLICY, self.policy_base, self.policy_chat, config.policy),
                (SIMULATOR, self.simulator_base, self.simulator_chat, config.simulator),
            )
        )
        if config.proxy.model:
            self.judge = self._pool(PROXY, str(self.proxy_base), self.proxy_chat, config.proxy.engine, gate=gate)
        if planned:
            self._wait_for_machines()
        else:
            self._start_learner(need)
        if not (self.folder / "replay" / "logs").is_dir():
            self.open_store("logs")
            self.keep([log for split in Split for log in self.logs[split]])
        self._bring_up()
        if self.keeps_start:
            self.learner.load(START, self.start_folder, trainable=False)
        for pool in self.pools:
            pool.wait_until_ready()
        if isinstance(self.judge, ReplicaPool):
            self._train_proxy(self.judge)
        self.collector = Collector(
            self.task, self.policy, config.policy.sampling, config.simulator.sampling
        )
        set_aside_what_is_loaded()

    def _start_learner(self, store: Need) -> None:
        self.learner = LearnerGroup(
            self.config.learner, lambda ranks: self._wait_for_machines(store, *ranks), self.say,
            keep_in=self.folder / "not_finite",
        )  # fmt: skip
        self._started.callback(self.learner.close)

    def _models(self) -> dict[str, Path]:
        """Base model of each role."""
        proxy = {PROXY: self.proxy_base} if self.config.proxy.model else {}
        return {POLICY: self.policy_base, SIMULATOR: self.simulator_base} | proxy

    def start_judging(self, folder: Path) -> None:
        """Start only what it takes to judge the saved policy in ``folder``: its engine and, if there is one, the
        proxy's, as it was fitted. No simulator, learner or store."""
        served = {name: base for name, base in self._models().items() if name == PROXY} | {POLICY: folder}
        self.config = with_caches(self.config, served, self.say)
        config, gate = self.config, WaveGate() if self.config.deterministic else None
        self.policy = self._pool(
            POLICY, str(folder.resolve()), self.policy_chat, config.policy.engine,
            replicas=config.policy.replicas, gate=gate,
        )  # fmt: skip
        if config.proxy.model:
            fitted = (self.folder / "models" / PROXY).resolve() if config.proxy.sft.epochs else self.proxy_base
            self.judge = self._pool(PROXY, str(fitted), self.proxy_chat, config.proxy.engine, gate=gate)
        self._wait_for_machines()
        for pool in self.pools:
            pool.wait_until_ready()
        self.collector = Collector(self.task, self.policy, config.policy.sampling, config.simulator.sampling)

    def start_talking(self, policy: Path, simulator: Path) -> None:
        """Start only what it takes to hold dialogues between two saved models: both engines, no learner, no store."""
        self.config = with_caches(self.config, {POLICY: policy, SIMULATOR: simulator}, self.say)
        config, gate = self.config, WaveGate() if self.config.deterministic else None
        self.policy, self.simulator = (
            self._pool(role, str(folder.resolve()), chat, side.engine, replicas=side.replicas, gate=gate)
            for role, folder, chat, side in (
                (POLICY, policy, self.policy_chat, config.policy),
                (SIMULATOR, simulator, self.simulator_chat, config.simulator),
            )
        )
        self._wait_for_machines()
        for pool in self.pools:
            pool.wait_until_ready()
        self.collector = Collector(self.task, self.policy, config.policy.sampling, config.simulator.sampling)

    def use_policy(self, folder: Path) -> None:
        """Serve the saved policy in ``folder``, without the learner; its version counts up."""
        files = sorted(folder.glob("*.safetensors"))
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        self.policy.publish(ray.put(weights), self.policy.version + 1)

    def _bring_up(self) -> None:
        """Cold start of the policy on the logs; upbringing of the uncalibrated simulator."""
        self.start_folder = self._fit(
            "start", POLICY, self.policy_base, self.logs, Side.POLICY, self.policy_chat, self.config.policy.start
        )
        self.uncalibrated_folder = self.simulator_base
        if self.upbringing_logs:
            self.uncalibrated_folder = self._fit(
                "uncalibrated", SIMULATOR, self.simulator_base, self.upbringing_logs, Side.USER,
                self.simulator_chat, self.config.simulator.start,
            )  # fmt: skip

    def _train_proxy(self, pool: ReplicaPool) -> None:
        """Fit the proxy to held-out human turns, which nothing else has seen, and serve it."""
        logs, rest = self.logs[Split.HELD_OUT], len(self.logs[Split.HELD_OUT]) // 10
        halves = {Split.CALIBRATION: logs[rest:], Split.MONITOR: logs[: max(1, rest)]}
        folder = self._fit(PROXY, PROXY, self.proxy_base, halves, Side.USER, pool.tokens, self.config.proxy.sft)
        self.learner.load(PROXY, folder, trainable=False)
        pool.publish(self.learner.weights(PROXY), 1)
        self.learner.unload(PROXY)

    def _fit(
        self, name: str, slot: str, base: Path, logs: Any, side: Side, chat: ChatTokens, sft: Any
    ) -> Path:
        folder = self.folder / "models" / name
        if sft.epochs == 0:
            return base
        if (folder / "fit.json").is_file():
            return folder
        train, monitor = (log_samples(logs[s], side, chat) for s in (Split.CALIBRATION, Split.MONITOR))
        train = list(some_of(train, sft.most_dialogues, 0))
        kept, key = None, ""
        if self.config.reuse_fits and self._fits_are_the_same_again(base, train, monitor):
            kept = KeptFits(CACHE / "fits", self.say)
            key = key_of(slot, base, train, monitor, sft, self.config.learner)
            if kept.take(key, folder):
                self.say(f"{name}: the same fit was done before on this machine, and is taken from {CACHE / 'fits'}")
                return folder
        result = fine_tune(
            self.learner, slot, base, train, monitor, sft, folder, 0, self.progress(f"fitting {name}")
        )
        self.say(f"{name}: monitor NLL {result['nll_before']:.3f} -> {result['nll_after']:.3f} nats a token")
        (folder / "fit.json").write_text(json.dumps(result))
        if kept is not None and self.learner.micro_batch_tokens == self.config.learner.micro_batch_tokens:
            kept.keep(key, folder)
        return folder

    def _fits_are_the_same_again(self, base: Path, train: Sequence[Sample], monitor: Sequence[Sample]) -> bool:
        """Whether they are, bit for bit, and worth keeping: on CPUs, not on any machine of a cluster, small."""
        learner = self.config.learner
        if learner.labels or ray.cluster_resources().get("GPU", 0) or not (train and monitor):
            return False
        return sum(file.stat().st_size for file in base.iterdir()) <= LARGEST_MIB * 2**20

    def _pool(self, *arguments: Any, **named: Any) -> ReplicaPool:
        pool = ReplicaPool(*arguments, say=self.say, **named)
        self.pools.append(pool)
        self._started.callback(pool.close)
        return pool

    def _wait_for_machines(self, *others: Need) -> None:
        """Until all replicas and ``others`` have what they need of the cluster."""
        wait_for_machines([*others, *(need for pool in self.pools for need in pool.needs())], self.say)

    def stop(self) -> None:
        """End what has been started, though starting may have failed half way: it would keep the next from starting."""
        try:
            self.scribe.close()  # a checkpoint of a run that is going down is worth waiting for
        finally:
            self._started.close()

    def on_stop(self, end: Callable[[], None]) -> None:
        """Call ``end`` before the parts that are there now are stopped."""
        self._started.callback(end)

    # ---- what the arms are made of -------------------------------------------------------------------

    def open_store(self, name: str, rewind_to: int | None = None) -> None:
        """A store for each arm and seed. Where the arm goes on from a checkpoint, the store goes back to its update
        ``rewind_to``; else what an interrupted attempt left goes: its dialogues would be taken for repeated ones."""
        folder = self.folder / "replay" / name
        if rewind_to is None:
            shutil.rmtree(folder, ignore_errors=True)
        self.ask_store("open", str(folder.resolve()))
        if rewind_to is not None:
            self.ask_store("rewind", rewind_to)

    def dialogues_of(self, arm: str, update: int) -> list[Dialogue]:
        """What an arm collected for an update, in its order; from the store that is open."""
        return from_table(self.ask_store("table", kind="rollout", arm=arm, update=update))

    def keep(self, dialogues: Sequence[Dialogue]) -> None:
        """Put dialogues into the replay store."""
        self.ask_store("append_table", to_table(dialogues))

    def ask_store(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the replay store (``ReplayService``), again if its disk was full: what failed for that
        reason left no trace.

        Raises:
            PartLost: the store's process is gone, or does not answer.
        """
        while True:
            try:
                return ray.get(getattr(self.store, method).remote(*arguments, **named), timeout=2 * STORE_TIMEOUT_S)
            except (RayActorError, GetTimeoutError) as error:
                raise PartLost(f"the replay store is gone: {first_line(error)}") from error
            except OSError as error:
                if not is_no_room(error):
                    raise
                wait_for_room(self.folder, self.say)

    @property
    def uses_reference(self) -> bool:
        """Whether the loss keeps the policy near its start, whose log-probs are then needed at every update."""
        training = self.config.training
        return resolve_loss((training.loss, dict(training.loss_config))).needs_reference

    @property
    def keeps_start(self) -> bool:
        """Whether the policy that every arm starts from stays with the learner; else it is loaded when it is needed."""
        return self.uses_reference or self.config.shift.every > 0

    def log_probs_at_start(self, logs: Sequence[Dialogue]) -> list[NDArray[np.float32]]:
        """Log-probs [T] of the policy's turns in ``logs`` under the policy that every arm starts from, NaN elsewhere;
        T as in the policy's view. Each log, in which the policy speaks, is scored once a run."""
        # The id alone does not do: scripted logs of two populations share their scenarios.
        keys = [(log.id, *(turn.text for turn in log.turns)) for log in logs]
        new = {key: log for key, log in zip(keys, logs, strict=True) if key not in self.at_start}
        if new:
            views = [sample.tokens for sample in log_samples(list(new.values()), Side.POLICY, self.policy_chat)]
            self.at_start |= dict(zip(new, self.score_at_start(views), strict=True))
        return [self.at_start[key] for key in keys]

    def log_probs_cross_fitted(self, logs: Sequence[Dialogue], folds: int) -> list[NDArray[np.float32]]:
        """As ``log_probs_at_start``, under clones of the logged policy: each log, in which the policy speaks, under one
        that was fitted to the calibration logs of the other ``folds - 1`` folds only. The clones are fitted once a run
        as the policy's cold start is or, if it has none, as simulators are; in the simulator's place in the learner,
        which is filled anew afterwards."""
        keys = [(f"{folds} folds", log.id, *(turn.text for turn in log.turns)) for log in logs]
        new = {key: log for key, log in zip(keys, logs, strict=True) if key not in self.at_start}
        start = self.config.policy.start
        sft = start if start.epochs else self.config.calibration.sft
        for fold in sorted({fold_of(log.id, folds) for log in new.values()}):
            others = [log for log in self.logs[Split.CALIBRATION] if fold_of(log.id, folds) != fold]
            known = self.logs | {Split.CALIBRATION: others}
            clone = self._fit(
                f"clone-{fold}-of-{folds}", SIMULATOR, self.policy_base, known, Side.POLICY, self.policy_chat, sft
            )
            here = {key: log for key, log in new.items() if fold_of(log.id, folds) == fold}
            views = [sample.tokens for sample in log_samples(list(here.values()), Side.POLICY, self.policy_chat)]
            self.learner.load(SIMULATOR, clone, trainable=False)
            self.at_start |= dict(zip(here, self.learner.log_probs(SIMULATOR, views), strict=True))
        return [self.at_start[key] for key in keys]

    def score_at_start(self, views: Sequence[TokenSequence], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        """Log-probs [T] of the policy's views under the policy that every arm starts from, NaN where not masked."""
        if not self.keeps_start:
            self.learner.load(START, self.start_folder, trainable=False)
        found = self.learner.log_probs(START, views, temperature)
        if not self.keeps_start:
            self.learner.unload(START)
        return found

    def elastic(self) -> Elastic:
        """What scales the replicas of both sides while an arm trains."""
        sides = {POLICY: self.config.policy, SIMULATOR: self.config.simulator}
        return Elastic(
            {POLICY: self.policy, SIMULATOR: self.simulator},
            {role: side.scaling for role, side in sides.items()},
            {role: side.replica_bounds for role, side in sides.items()},
            self.say,
        )

    def use_simulator(self, folder: Path, version: int | None = None) -> None:
        """Serve the simulator in ``folder``, as ``version`` or the next one."""
        self.learner.load(SIMULATOR, folder, optimizer=OptimizerConfig(), seed=0)
        self.serve_simulator(folder, version)

    def serve_simulator(self, folder: Path, version: int | None = None) -> None:
        """Send the learner's simulator, which was saved in ``folder``, to the replicas."""
        version = self.simulator.version + 1 if version is None else version
        self.simulator.publish(self.learner.weights(SIMULATOR), version)
        self.served_simulator = folder

    def check_parity(self) -> dict[str, float]:
        """Compare learner and engine on both sides, which hold the same weights by then, at the first call; figures in
        nats a token, at each.

        Raises:
            UserError: they differ by more than rounding.
        """
        if self._parity is not None:
            return self._parity
        began = time.monotonic()
        logs, config = self.logs[Split.CALIBRATION][:LOGS_FOR_PARITY], self.config
        figures = self._parity = {}
        said: list[str] = []
        for pool, side, settings in (
            (self.policy, Side.POLICY, config.policy), (self.simulator, Side.USER, config.simulator),
        ):  # fmt: skip
            views = [sample.tokens for sample in log_samples(logs, side, pool.tokens)]
            dtypes = (config.learner.dtype, settings.engine.dtype)
            found = check_parity(self.learner, pool, views, model=settings.model, dtypes=dtypes)
            if found is not None:
                figures |= {f"parity_mean_{pool.role}": found.mean, f"parity_max_{pool.role}": found.max}
                said.append(f"{pool.role} {found.mean:.1e} on average and {found.max:.1e} at most")
        if figures:
            took = f"{time.monotonic() - began:.1f} s"
            self.say(f"learner and engines agree ({took}): log-probs differ by {', '.join(said)}, in nats a token")
        return figures

    def write_aside(self, *jobs: tuple[str, Callable[[], None]]) -> None:
        """Write files while training goes on, each job with its name in the log, and then what is new in the run folder
        to ``training.checkpoint_store``, if there is one."""
        if self._copy is None:
            self._copy = copy_of_run(self.config, self.folder)
        copy = [] if self._copy is None else [("the copy of the run in the store", self._copy.send)]
        self.scribe.write(*jobs, *copy)

    def served_below_run(self) -> str:
        """The folder of the simulator that is served, below the run folder, as a run that goes on in another place
        needs it; empty: the uncalibrated one."""
        assert self.served_simulator is not None
        folder = self.served_simulator
        return "" if folder == self.uncalibrated_folder else folder.relative_to(self.folder).as_posix()

    def human_logs(self, split: Split) -> list[Dialogue]:
        """The logs that simulators are aligned with; a placebo run takes those of the simulator's upbringing."""
        placebo = self.config.calibration.source == "upbringing"
        return self.upbringing_logs[split] if placebo else self.logs[split]
