"""Checks of a run's settings in combination, where each of them alone is allowed (``settings/`` checks those).

They take place when a config is loaded: settings that contradict each other, sizes that a later part will need, and the
settings of parts named by import path. Checks that need the logs follow when these are read (``run/log_checks.py``).
"""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calibrated_rl import turn_values
from calibrated_rl.components.component import import_path, looked_up
from calibrated_rl.components.short_names import full_path
from calibrated_rl.config.arms import builtin_arms, existing_arms, find_arm
from calibrated_rl.config.endpoint_checks import problems_of_endpoints
from calibrated_rl.config.engine_checks import problems_of_ranks, problems_of_sampling
from calibrated_rl.config.health_checks import problems_of_health
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.trigger_checks import problems_of_trigger
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.errors import UserError
from calibrated_rl.learner.advantages.checked import advantage_path
from calibrated_rl.settings.fields import (
    Key,
    NotAllowed,
    Problem,
    dotted,
    from_plain,
    hints_of,
    listed,
    nearest,
    shown,
    unknown_key,
)
from calibrated_rl.settings.secrets import has_absent_secrets
from calibrated_rl.shift.sizes import FOLDS, least_dialogues, least_to_halve
from calibrated_rl.storage.store_address import check_address

SCRIPTED_LOGS = "calibrated_rl.logs.scripted:ScriptedLogs"
OF_KIND: Mapping[str, tuple[str, Sequence[str]]] = {
    "task": ("task", ("scenarios", "ending", "outcome", "acts", "profile")),
    "human": ("scripted human", ("reply", "sample", "log_prob")),
    "pretraining.human": ("scripted human", ("reply", "sample", "log_prob")),
    "logs.reader": ("log reader", ("read",)),
    "pretraining.reader": ("log reader", ("read",)),
    "calibration.method": ("calibration method", ("align",)),
    "proxies": ("proxy", ("fit", "reply", "save", "load")),
    "training.loss": ("loss", ("__call__",)),
    "shift.estimators": ("estimator", ("measure",)),
    "health.detectors": ("detector", ("detect",)),
    "training.advantage": ("advantage", ("__call__",)),
    "training.turn_value": ("turn value", ("fit",)),
    "judge": ("judge", ("outcome",)),
}
"""The kind of class that each import path must name, and its required methods; see the ``base.py`` of each."""


def problems_together(config: RunConfig) -> Iterator[Problem]:
    """Settings that contradict each other. Loads nothing."""
    yield from _arms_and_seeds(config)
    yield from _replicas_and_memory(config)
    yield from _training(config)
    yield from problems_of_trigger(config)
    yield from problems_of_endpoints(config)
    yield from problems_of_sampling(config)
    yield from problems_of_ranks(config)
    try:
        datetime.date.fromisoformat(config.date or "2000-01-01")
    except ValueError:
        yield Problem(("date",), f"is {config.date}: there is no such day")
    if config.proxy.model and config.human:
        yield Problem(("proxy", "model"), "is for tasks without a scripted human; leave one of the two empty")
    elif config.proxy.model and config.proxy.model in (config.simulator.model, config.policy.model):
        yield Problem(
            ("proxy", "model"), f"is '{config.proxy.model}': the proxy must be a model of another family than policy "
            "and simulator",
        )  # fmt: skip
    if config.proxies and (config.human or config.proxy.model):
        other = "human" if config.human else "proxy.model"
        text = f"stand for people where there are only logs, and so does `{other}`; leave one of the two empty"
        yield Problem(("proxies",), text)
    if config.calibration.source == "pretraining" and not config.pretraining.chosen:
        text = "is pretraining, and `pretraining.human` and `pretraining.reader` are empty"
        yield Problem(("calibration", "source"), text)
    if config.pretraining.human and config.pretraining.reader:
        yield Problem(("pretraining", "reader"), "is for real dialogues, and `pretraining.human` for scripted ones; "
                      "leave one of the two empty")  # fmt: skip


def _arms_and_seeds(config: RunConfig) -> Iterator[Problem]:
    for key in ("arms", "seeds"):
        if not getattr(config, key):
            yield Problem((key,), "is empty: there is nothing to run")
    for key in ("arms", "seeds", "control_arms", "control_seeds"):
        values: Sequence[Any] = getattr(config, key)
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            yield Problem((key,), f"names {twice[0]} twice")
    if config.control_arms and not config.control_seeds:
        yield Problem(("control_seeds",), "is empty, and control_arms is not")
    in_both = [
        arm for arm in config.control_arms if arm in config.arms and set(config.seeds) & set(config.control_seeds)
    ]
    if in_both:
        yield Problem(("control_arms",), f"names {in_both[0]}, which is among the arms, with a seed that both have")
    for key in ("arms", "control_arms"):
        for number, arm in enumerate(getattr(config, key)):
            try:
                arm_class = find_arm(arm)
            except UserError as error:
                yield Problem((key, number), str(error), named=False)
                continue
            if arm_class.needs_human() and not config.human:
                text = f"the arm '{arm_class.name}' needs a scripted human, and `human` is empty"
                yield Problem((key, number), text, named=False)
            for text in arm_class().problems(config):
                yield Problem((key, number), text, named=False)
    arm_names = {*builtin_arms(), *(arm.name for arm in existing_arms([*config.arms, *config.control_arms]))}
    for key in ("learning_rates", "loss_configs"):
        for name in getattr(config.training, key):
            if name not in arm_names:
                text = f"names no arm: choose {listed(sorted(arm_names))}{nearest(name, arm_names)}"
                yield Problem(("training", key, name), text)


def _replicas_and_memory(config: RunConfig) -> Iterator[Problem]:
    sides = (("policy", config.policy), ("simulator", config.simulator))
    for role, side in sides:
        minimum, maximum = side.replica_bounds
        if not minimum <= side.replicas <= maximum:
            yield Problem(
                (role, "replicas"), f"is {side.replicas}, {role}.scaling allows {minimum} to {maximum}: it must start "
                "with a number that is allowed",
            )  # fmt: skip
        if config.deterministic and minimum < maximum:
            yield Problem(
                (role, "scaling"), f"allows {minimum} to {maximum} replicas, and `deterministic` is true: batches "
                "depend on the number of replicas, so the run would not be the same again; give up one of the two",
            )  # fmt: skip
        if side.sampling.max_turn_tokens >= side.engine.max_model_len:
            yield Problem(
                (role, "sampling", "max_turn_tokens"),
                f"is {side.sampling.max_turn_tokens}: {role}.engine.max_model_len, "
                f"{side.engine.max_model_len}, leaves no space for the tokens before a turn",
            )  # fmt: skip
    roles = [(role, side.engine) for role, side in sides]
    roles += [("proxy", config.proxy.engine)] if config.proxy.model else []
    for role, engine in roles:
        yield from _shares_of_gpus((role, "engine", "num_gpus"), engine.num_gpus)
        if not engine.kv_cache_mib and (reason := _why_memory_cannot_be_planned(config)):
            yield Problem((role, "engine", "kv_cache_mib"), f"is 0, and {reason}")
    yield from _shares_of_gpus(("learner", "gpus"), config.learner.gpus)


def _shares_of_gpus(key: Key, count: float) -> Iterator[Problem]:
    if count > 1 and count != int(count):
        yield Problem(key, f"is {count:g}: Ray gives shares of one GPU, or whole ones")


def _why_memory_cannot_be_planned(config: RunConfig) -> str:
    if config.deterministic:
        return (
            "`deterministic` is true: batches may depend on free memory, so the run would not be the same again; give "
            "the cache a size"
        )
    engines = [config.policy.engine, config.simulator.engine] + ([config.proxy.engine] if config.proxy.model else [])
    separate = any(engine.gpus >= 1 or engine.labels for engine in engines)
    if config.learner.ranks > 1 or config.learner.labels or separate or len({e.num_gpus > 0 for e in engines}) > 1:
        return "it is planned only for a device that learner and engines share; give it a size"
    return ""


def _training(config: RunConfig) -> Iterator[Problem]:
    training = config.training
    if training.group_size < 2:
        yield Problem(
            ("training", "group_size"), f"is {training.group_size}: the advantage {training.advantage} compares the "
            "dialogues of a group; it must be at least 2",
        )  # fmt: skip
    if training.max_staleness and config.deterministic:
        yield Problem(
            ("training", "max_staleness"), f"is {training.max_staleness}, and `deterministic` is true: which weights "
            "say a turn would depend on timing, so the run would not be the same again; give up one of the two",
        )  # fmt: skip
    if training.minibatches > training.tokens_per_update:
        yield Problem(
            ("training", "minibatches"), f"is {training.minibatches}: an update of training.tokens_per_update, "
            f"{training.tokens_per_update}, cannot be cut into so many",
        )  # fmt: skip
    if training.checkpoint_store:
        try:
            check_address(training.checkpoint_store)
        except UserError as error:
            yield Problem(("training", "checkpoint_store"), str(error), named=False)


def problems_of_sizes(config: RunConfig) -> Iterator[Problem]:
    """Sizes that later parts need and that can be checked without the logs."""
    minimum = least_dialogues(FOLDS)
    if config.shift.every and config.shift.dialogues < minimum:
        yield Problem(
            ("shift", "dialogues"), f"is {config.shift.dialogues}: a classifier is cross-fitted on them in {FOLDS} "
            f"folds; it must be at least {minimum}, or set shift.every to 0",
        )  # fmt: skip
    reserve, count = config.calibration.reserve, config.logs.get("calibration")
    if config.logs.get("reader") == SCRIPTED_LOGS and isinstance(count, int) and reserve >= count > 0:
        yield Problem(("calibration", "reserve"), f"is {reserve}, of logs.calibration, {count}: no log would be left")
    for key, source, requirement in _split_sizes(config):
        count = source.get(str(key[-1]))
        if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < requirement[0]:
            yield Problem(key, f"is {count}: {requirement[1]}; it must be at least {requirement[0]}")


def _split_sizes(config: RunConfig) -> Iterator[tuple[Key, Mapping[str, Any], tuple[int, str]]]:
    """For logs that are generated, whose sizes are settings: key, settings, minimum and purpose."""
    if config.logs.get("reader") == SCRIPTED_LOGS:
        minimum = least_to_halve(FOLDS)
        yield ("logs", "held_out"), config.logs, (minimum, f"random halves of them are cross-fitted in {FOLDS} folds")
        yield ("logs", "monitor"), config.logs, (1, "simulators and epochs are evaluated on them")
        yield ("logs", "tuning"), config.logs, (1, "every split is read")
        yield ("logs", "calibration"), config.logs, (1, "models are fitted to them")
    if config.pretraining.human:
        for split in ("calibration", "monitor"):
            yield ("pretraining", "logs", split), config.pretraining.logs, (1, "its simulator is fitted to them")


def problems_of_parts(config: RunConfig) -> Iterator[Problem]:
    """Import paths that name nothing or a class of another kind, and settings that the part does not accept.

    Loads nothing but the modules of the parts.
    """
    reader = config.logs.get("reader")
    if not isinstance(reader, str) or not reader:
        yield Problem(("logs", "reader"), "is missing: write the import path of a log reader")
    reader_settings = {name: value for name, value in config.logs.items() if name != "reader"}
    yield from _part("task", config.task, ("task_config",), config.task_config)
    if config.human:
        yield from _part("human", config.human, ("human_config",), config.human_config)
    if config.judge:
        yield from _part("judge", config.judge, ("judge_config",), config.judge_config)
    if isinstance(reader, str) and reader:
        yield from _part("logs.reader", reader, ("logs",), reader_settings)
        if reader_settings.get("human") and isinstance(reader_settings["human"], str):
            inner = reader_settings.get("human_config")
            yield from _part(
                "human", reader_settings["human"], ("logs", "human_config"), inner, path_key=("logs", "human")
            )
    if config.pretraining.human:
        pretraining = config.pretraining
        yield from _part(
            "pretraining.human", pretraining.human, ("pretraining", "human_config"), pretraining.human_config
        )
        yield from _part(None, SCRIPTED_LOGS, ("pretraining", "logs"), pretraining.logs)
        for name in ("human", "human_config"):
            if name in pretraining.logs:
                yield Problem(("pretraining", "logs", name), f"belongs into pretraining.{name}")
    if pretraining_reader := config.pretraining.reader:
        yield from _part("pretraining.reader", pretraining_reader, ("pretraining", "logs"), config.pretraining.logs)
    for name, settings in config.proxies.items():
        proxy_key: Key = ("proxies", name)
        path = settings.get("model")
        if not isinstance(path, str) or not path:
            yield Problem((*proxy_key, "model"), "is missing: write the import path of a proxy, or endpoint:NAME")
            continue
        if endpoint_name(path) is not None:
            continue
        values = {setting: value for setting, value in settings.items() if setting != "model"}
        yield from _part("proxies", path, proxy_key, values, path_key=(*proxy_key, "model"))
    method = config.calibration
    yield from _part("calibration.method", method.method, ("calibration", "method_config"), method.method_config)
    training = config.training
    yield from _part("training.loss", training.loss, ("training", "loss_config"), training.loss_config)
    for arm, settings in training.loss_configs.items():
        key = ("training", "loss_configs", arm)  # what is wrong with the loss itself was told above
        yield from (p for p in _part("training.loss", training.loss, key, settings) if p.key[:3] == key)
    advantage = advantage_path(training.advantage)
    yield from _part("training.advantage", advantage, ("training", "advantage_config"), training.advantage_config)
    turn_value = full_path(turn_values.__name__, training.turn_value, "turn value")
    yield from _part("training.turn_value", turn_value, ("training", "turn_value_config"), training.turn_value_config)
    for kind, names in (("shift.estimators", config.shift.estimators), ("health.detectors", config.health.detectors)):
        for number, name in enumerate(names):
            if ":" in name:  # short names were checked against the built-in ones already
                list_key: Key = (*kind.split("."), number)
                yield from _part(kind, name, list_key, {}, path_key=list_key)
    yield from problems_of_health(config)


def _part(kind: str | None, path: str, key: Key, values: Any, path_key: Key | None = None) -> Iterator[Problem]:
    """Problems of the part at ``path`` and of its settings ``values``, which are below ``key`` in the config.

    Args:
        kind: key in ``OF_KIND``; None: a built-in part.
        path_key: key of the import path; None: ``kind``.
    """
    part_key = path_key or (tuple(kind.split(".")) if kind else key)
    try:
        cls = import_path(path)
        if kind is not None:
            _refuse_other_kinds(cls, path, *OF_KIND[kind])
        hints_of(cls.Config)
    except UserError as error:
        message = str(error) if f"'{path}'" in str(error) else f"'{path}': {error}"
        yield Problem(part_key, f"{dotted(part_key)}: {message}", named=False)
        return
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        yield Problem(key, f"is {shown(values)}: write settings as key: value")
        return
    if has_absent_secrets(values):
        known_keys = hints_of(cls.Config)
        yield from (
            Problem((*key, n), unknown_key(cls.Config, n, key), named=False) for n in values if n not in known_keys
        )
        return
    try:
        from_plain(cls.Config, looked_up(values, dotted(key)), key)
    except NotAllowed as error:
        yield from error.problems
    except UserError as error:
        yield Problem(key, f"{dotted(key)}: {error}", named=False)


def _refuse_other_kinds(cls: Any, path: str, kind: str, required: Sequence[str]) -> None:
    if not isinstance(cls, type):
        article = "an" if kind[0] in "aeiou" else "a"
        raise UserError(f"'{path}' is no class: {article} {kind} is a class with a frozen dataclass Config inside")
    attributes = {
        name for base in cls.__mro__ for name in vars(base)
    }  # of the class itself, without those of its metaclass, such as __call__
    if missing := [name for name in required if name not in attributes]:
        raise UserError(f"'{path}' is no {kind}: it has no {', '.join(missing)}")
    if not hasattr(cls, "Config"):
        raise UserError(f"'{path}' is no {kind} that can be configured: it has no frozen dataclass Config inside")
