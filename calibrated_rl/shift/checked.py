"""Estimators by name, wrapped in checks: an error of one names the user's line, and its metrics can be stored
and shown."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from calibrated_rl.components.component import build, import_path
from calibrated_rl.components.plain_data import NotPlain, kind_of, real, words
from calibrated_rl.components.short_names import full_path, short_names
from calibrated_rl.components.user_code import UserCodeError, call, described
from calibrated_rl.errors import UserError
from calibrated_rl.shift import estimators
from calibrated_rl.shift.base import Estimate, Far, TurnEstimate
from calibrated_rl.shift.interface import Estimator

ESTIMATORS = estimators.__name__
KIND = "estimator"


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: one of ``names`` is neither a module of ``shift/estimators/`` nor the import path of an estimator.
    """
    for name in names:
        if name not in short_names(ESTIMATORS):
            estimator_class(name)


def estimator_class(name: str) -> Any:
    """The class of the estimator ``name``.

    Raises:
        UserError: there is no such estimator, or the path names something else.
    """
    path = full_path(ESTIMATORS, name, KIND)
    cls = import_path(path)
    if not (isinstance(cls, type) and callable(getattr(cls, "measure", None)) and hasattr(cls, "Config")):
        raise UserError(f"'{path}' is no estimator: it must be a class with a Config inside and a method measure")
    return cls


def settings_of(name: str, seed: int, encoder: str, null_halvings: int | None) -> dict[str, Any]:
    """The settings of an estimator that a comparison decides, as far as it has them."""
    decided = {"seed": seed, "null_halvings": null_halvings, "encoder": encoder}
    setting_names = {field.name for field in dataclasses.fields(estimator_class(name).Config)}
    return {key: value for key, value in decided.items() if key in setting_names and value is not None}


def build_estimator(name: str, seed: int, encoder: str, null_halvings: int | None) -> Estimator[Any]:
    """The estimator ``name``.

    Raises:
        UserError: there is none, or it cannot be built.
    """
    path = full_path(ESTIMATORS, name, KIND)
    estimator: Estimator[Any] = build(path, settings_of(name, seed, encoder, null_halvings), f"the estimator {name}")
    return estimator


def measured(estimator: Estimator[Any], data: Any) -> dict[str, Estimate]:
    """``estimator.measure(data)``.

    Raises:
        UserCodeError: the estimator failed, or returned something else than metrics by name.
        UserError: what the estimator itself says of data that are too few for it.
    """

    def description() -> str:
        return described(type(estimator), KIND, "measure")

    estimates = call(type(estimator), description, estimator.measure, data)
    try:
        # Its own mappings and sequences may raise while they are looked at.
        return call(type(estimator), description, _checked_estimates, estimates)
    except NotPlain as problem:
        raise UserCodeError(f"{description()}: {problem}") from None


def _checked_estimates(estimates: Any) -> dict[str, Estimate]:
    if not isinstance(estimates, Mapping):
        raise NotPlain("it", f"is {kind_of(estimates)}: it must be a dict of Estimate by name")
    if not estimates:
        raise NotPlain("it", "is empty: raise UserError, and say what the data lack")
    return {
        words(name, "a name"): _checked_estimate(estimate, f"['{name}']", name) for name, estimate in estimates.items()
    }


def _checked_estimate(estimate: Any, place: str, name: str) -> Estimate:
    if not isinstance(estimate, Estimate):
        raise NotPlain(place, f"is {kind_of(estimate)}: it must be an Estimate")
    numbers: dict[str, Any] = {key: real(getattr(estimate, key), f"{place}.{key}") for key in ("value", "low", "high")}
    band = (estimate.null_low, estimate.null_high)
    if (band[0] is None) != (band[1] is None):
        raise NotPlain(place, f"has null_low {band[0]} and null_high {band[1]}: both are numbers, or both are None")
    if band[0] is not None:
        numbers |= {key: real(getattr(estimate, key), f"{place}.{key}") for key in ("null_low", "null_high")}
    if estimate.far not in get_args(Far):
        raise NotPlain(f"{place}.far", f"is {kind_of(estimate.far)}: choose above, below or either")
    notes = tuple(
        words(note, f"{place}.notes[{i}]") for i, note in enumerate(_listed(estimate.notes, f"{place}.notes"))
    )
    turns = enumerate(_listed(estimate.by_turn, f"{place}.by_turn"))
    by_turn = tuple(_turn(estimate, f"{place}.by_turn[{i}]") for i, estimate in turns)
    return replace(estimate, name=name, notes=notes, by_turn=by_turn, **numbers)


def _turn(estimate: Any, place: str) -> TurnEstimate:
    if not isinstance(estimate, TurnEstimate):
        raise NotPlain(place, f"is {kind_of(estimate)}: it must be a TurnEstimate")
    numbers: dict[str, Any] = {key: real(getattr(estimate, key), f"{place}.{key}") for key in ("value", "low", "high")}
    counts = {key: _whole(getattr(estimate, key), f"{place}.{key}") for key in ("turn", "count")}
    return TurnEstimate(**numbers, **counts)


def _whole(value: Any, place: str) -> int:
    number = real(value, place)
    if number != number // 1:
        raise NotPlain(place, f"is {kind_of(value)}: it must be a whole number")
    return int(number)


def _listed(value: Any, place: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise NotPlain(place, f"is {kind_of(value)}: it must be a tuple")
    return value
