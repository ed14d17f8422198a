"""Every setting has a range, a list of choices or a reason to be free; what is not allowed is named before a start."""

import dataclasses
import importlib
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.settings.fields import (
    NotAllowed,
    OneOf,
    Pattern,
    Range,
    from_plain,
    hints_of,
)
from tests.support.paths import ROOT

PACKAGES = ("calibrated_rl", "research", "tools")

FREE_TEXT = {
    "ModelConfig.chat_template": "a file, or empty: the model's own",
    "ProxyConfig.chat_template": "the same",
    "CalibrationConfig.asked": "a file, or empty: none",
    "ProxyConfig.model": "a folder or any hub name, or empty: none",
    "TrainingConfig.checkpoint_store": "an address, which store_address.check_address reads",
    "RunConfig.label": "printed over the report",
    "JsonLines.Config.greeting": "said by the policy",
    "JsonLines.Config.policy_instructions": "said to the policy",
    "JsonLines.Config.user_instructions": "said to the user's side",
    "ReplayDurable.Config.folder": "a folder, or empty: the system's",
    "EndpointConfig.api_key": "a reference to an environment variable, or empty: none",
    "EndpointConfig.cache": "a folder, or empty: the run's own",
}
"""Texts that may be anything, and why."""
OF_PARTS = {
    "RunConfig.task_config", "RunConfig.human_config", "RunConfig.logs", "RunConfig.proxies",
    "RunConfig.judge_config", "JudgingConfig.judge_config",
    "EngineConfig.args",  # what vLLM takes
    "PretrainingConfig.human_config",
    "PretrainingConfig.logs", "CalibrationConfig.method_config", "TrainingConfig.loss_config", "RowConfig.config",
    "TrainingConfig.loss_configs", "TrainingConfig.advantage_config", "TrainingConfig.turn_value_config",
    "ScriptedLogs.Config.human_config",
    "EndpointConfig.parameters",  # what an API takes
    "ModelConfig.chat_template_kwargs", "ProxyConfig.chat_template_kwargs",  # what a template reads
}  # fmt: skip
"""Settings of parts that are named by import path: the part's own ``Config`` says what they may be."""
BY_PROGRAM = {"trl_step.py"}
"""Files whose settings a program makes, not a person."""


def all_configs() -> list[Any]:
    """Every config dataclass of the package, and of what lives beside it."""
    found = []
    for file in sorted(file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")):
        text = file.read_text()
        if file.name in BY_PROGRAM or not re.search(r"class (\w*(Config|Settings)|CasinoSource|MadeModel)\b", text):
            continue
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for owner in [module, *(each for each in vars(module).values() if isinstance(each, type))]:
            for name, each in vars(owner).items():
                named = re.search(r"(Config|Settings|CasinoSource|MadeModel)$", name)
                if named and dataclasses.is_dataclass(each) and getattr(each, "__module__", "") == module.__name__:
                    found.append(each)
    return list(dict.fromkeys(found))


def leaves(hint: Any, key: str) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Scalar annotations inside ``hint``, each with what is said beside it; nested configs are their own affair."""
    bare, beside = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    if dataclasses.is_dataclass(bare) or get_origin(bare) is Literal or bare in (type(None), Ellipsis):
        return
    if inside := get_args(bare):
        for each in inside:
            yield from leaves(each, key)
    else:
        yield key, bare, beside


@pytest.mark.slow
def test_every_setting_says_what_it_may_be() -> None:
    configs = all_configs()
    assert RunConfig in configs and len(configs) > 55
    silent, known = [], set()
    for cls in configs:
        for name, hint in hints_of(cls).items():
            for key, bare, beside in leaves(hint, f"{cls.__qualname__}.{name}"):
                known.add(key)
                if bare in (int, float):
                    ranges = [each for each in beside if isinstance(each, Range)]
                    fine = any(str(each) for each in ranges)
                elif bare is str:
                    fine = any(isinstance(each, Pattern | OneOf) for each in beside) or key in FREE_TEXT
                else:
                    fine = bare is bool or (bare is Any and key in OF_PARTS)
                if not fine and not (bare is str and key in OF_PARTS):  # their keys
                    silent.append(f"{key}: {bare}")
    assert not silent, "annotate them with a range or a choice (settings.py), or say above why they are free"
    assert {*FREE_TEXT, *OF_PARTS} <= known, "no such setting any more"


def bad_values(hint: Any) -> Iterator[Any]:
    """Values that ``hint`` does not allow, in the shape that it wants."""
    bare, beside = (get_args(hint)[0], hint.__metadata__) if get_origin(hint) is Annotated else (hint, ())
    origin, inside = get_origin(bare), get_args(bare)
    choices = [each for each in beside if isinstance(each, OneOf)]
    if dataclasses.is_dataclass(bare):
        yield from ("text", 3, None, [1])
    elif origin is dict:
        yield from ("text", [1])
        key = get_args(inside[0])[1].choices[0] if "OneOf" in str(inside[0]) else "k"
        yield from ({key: each} for each in bad_values(inside[1]))
    elif origin is list:
        yield from ("text", {"k": 1})
        yield from ([each] for each in bad_values(inside[0]))
    elif bare is int or bare is float:
        yield from (True, "x", None, math.nan, math.inf, -math.inf, [1])
        for limits in (each for each in beside if isinstance(each, Range)):
            low, high = (limits.at_least, limits.above), (limits.at_most, limits.below)
            yield from (each - 1 for each in (*low, limits.above) if each is not None)
            yield from (each for each in (limits.above, limits.below) if each is not None)
            yield from (each + 1 for each in high if each is not None)
        if bare is int:
            yield from (1.5, 2.0, 10**30)
    elif origin is Literal or choices:
        yield from ("nonsense", None, False, 99)
    elif bare is str:
        yield from (None, False, 3, 1.5, [1])
        yield from ("" for each in beside if isinstance(each, Pattern) and not each.admits(""))
    elif bare is bool:
        yield from ("off", 2, None, 0.5)


def run_settings(cls: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, hint in hints_of(cls).items():
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(bare):
            yield from run_settings(bare, (*key, name))
        yield (*key, name), hint


def test_every_setting_of_a_run_refuses_what_it_may_not_be() -> None:
    count = 0
    for key, hint in run_settings(RunConfig):
        wrong = list(bad_values(hint))
        assert wrong, f"{key}: nothing is refused"
        for value in wrong:
            tree: Any = value
            for part in reversed(key):
                tree = {part: tree}
            with pytest.raises(NotAllowed) as refused:
                from_plain(RunConfig, tree)
            assert str(refused.value).startswith((".".join(key), "unknown key")), (key, value, str(refused.value))
            count += 1
    assert count > 700
