"""An estimator from a file outside the repository: one file and its import path, and nothing else knows of it."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from calibrated_rl.components.short_names import short_names
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.report.rendering import render
from calibrated_rl.report.sections.populations import view
from calibrated_rl.shift.checked import ESTIMATORS, build_estimator, check_names, settings_of
from calibrated_rl.shift.compare_sets import compare_sets, population_metrics
from calibrated_rl.shift.interface import DialogueSets, Estimator
from tests.support.made_up_logs import population, terse, wordy
from tests.support.paths import MICRO

CURIOSITY = '''
from dataclasses import dataclass

import numpy as np

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Seed
from calibrated_rl.shift.base import Estimate, TurnEstimate
from calibrated_rl.shift.interface import user_texts

class Curiosity:
    """Question marks a dialogue, the others' minus the people's."""

    @dataclass(frozen=True)
    class Config:
        seed: Seed = 0

    def __init__(self, config):
        self.config = config

    def measure(self, sets):
        asked = [[" ".join(user_texts(d)).count("?") for d in own] for own in (sets.simulator, sets.human)]
        if len(asked[1]) < 3:
            raise UserError("curiosity needs 3 people")
        value = np.mean(asked[0]) - np.mean(asked[1])
        return {"curiosity": Estimate(name="", value=value, low=np.float32(value - 1), high=float("nan"))}

class Mine(Curiosity):
    def measure(self, sets):
        return {returned}

def figure(**changed):
    return Estimate(**{"name": "x", "value": 0.5, "low": 0.0, "high": 1.0} | changed)
'''


def file_in(folder: Path, returned: str = "{}") -> Path:
    (folder / "mine.py").write_text(CURIOSITY.replace("{returned}", returned))
    return folder / "mine.py"


def sets_of(count: int = 12) -> DialogueSets:
    return DialogueSets(human=population(terse, count, 0), simulator=population(wordy, 12, 1, "q"))


def test_it_measures_beside_those_of_the_package(tmp_path: Path) -> None:
    name = f"{file_in(tmp_path)}:Curiosity"
    config = load_config(MICRO, [f"shift.estimators=[lengths,{name}]"])
    found = compare_sets(sets_of(), config.shift.estimators, encoder="hashing", seed=3, null_halvings=2)
    assert {"curiosity", "wasserstein_turn_words"} <= set(found.estimates) and not found.refused
    own = found.estimates["curiosity"]
    assert (own.name, own.value, own.low) == ("curiosity", 0.0, -1.0) and type(own.value) is type(own.low) is float
    assert math.isnan(own.high) and own.as_dict()["high"] is None
    assert settings_of(name, 3, "hashing", 2) == {"seed": 3}, "what it has of what a comparison decides"


def test_it_stands_in_the_report(tmp_path: Path) -> None:
    name = f"{file_in(tmp_path)}:Curiosity"
    sets = sets_of()
    figures = population_metrics(list(sets.human), list(sets.simulator), [name])
    assert figures["figures"]["curiosity"]["reading"] == "no null band"
    measured = {when: {"populations": figures} for when in ("before", "after")}
    shown = view(SimpleNamespace(summary={"simulator": measured}))  # type: ignore[arg-type]
    assert shown is not None and "curiosity" in render(shown.template, view=shown)


def test_data_that_are_too_few_for_it_are_no_mistake_of_it(tmp_path: Path) -> None:
    name = f"{file_in(tmp_path)}:Curiosity"
    found = compare_sets(sets_of(2), ["lengths", name], encoder="hashing", null_halvings=0)
    assert found.refused[name] == "curiosity needs 3 people" and "wasserstein_turn_words" in found.estimates


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("None", "it is None: it must be a dict of Estimate by name"), ("{}", "it is empty: raise UserError"),
        ("{'x': 0.5}", r"\['x'\] is a float 0.5: it must be an Estimate"), ("{3: figure()}", "a name is an int 3"),
        ("{'x': figure(value='0.5')}", r"\['x'\].value is a str '0.5'"),
        ("{'x': figure(high=None)}", r"\['x'\].high is None: it must be a number"),
        ("{'x': figure(null_low=0.1)}", "has null_low 0.1 and null_high None: both are numbers, or both are None"),
        ("{'x': figure(far='up')}", r"\['x'\].far is a str 'up': choose above, below or either"),
        ("{'x': figure(notes='far')}", r"\['x'\].notes is a str 'far'"),
        ("{'x': figure(by_turn=[1])}", r"\['x'\].by_turn\[0\] is an int"),
        (
            "{'x': figure(by_turn=[TurnEstimate(turn=1.5, value=0, low=0, high=1, count=1)])}",
            r"\['x'\].by_turn\[0\].turn is a float 1.5: it must be a whole number",
        ),
        ("{'wasserstein_turn_words': figure()}", "'wasserstein_turn_words' is a metric of another estimator"),
        ("sets.people", "failed: AttributeError: .*mine.py:30: return sets.people"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero"),
    ],
)  # fmt: skip
def test_what_it_returns_is_used_or_refused_by_its_line(returned: str, reason: str, tmp_path: Path) -> None:
    names = ["lengths", f"{file_in(tmp_path, returned)}:Mine"]
    with pytest.raises(UserCodeError, match=rf"the estimator Mine: measure \(.*mine.py:29\).* {reason}"):
        compare_sets(sets_of(), names, encoder="hashing", null_halvings=0)
    with pytest.raises(UserCodeError, match="the estimator Mine"):
        population_metrics(list(sets_of().human), list(sets_of().simulator), names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:Curious", r"shift.estimators\[0\]: .*has no 'Curious'; did you mean 'Curiosity'"),
        ("{file}:figure", "is no class: "),
        ("{file}:UserError", "it has no measure"), ("nowhere.mine:Curiosity", "cannot be imported"),
        ("similarit", "choose act_divergence, acts, coverage, .*did you mean 'similarity'"),
        ("sources", "choose act_divergence"),
    ],
)  # fmt: skip
def test_what_is_no_estimator_is_refused_before_anything_starts(name: str, message: str, tmp_path: Path) -> None:
    name = name.format(file=file_in(tmp_path))
    with pytest.raises(UserError, match=message):
        load_config(MICRO, [f"shift.estimators=['{name}']"])
    with pytest.raises(UserError, match="there is no estimator|has no 'Curious'|is no estimator|cannot be imported"):
        check_names([name])


def test_every_module_of_the_folder_is_an_estimator_of_its_name() -> None:
    names = short_names(ESTIMATORS)
    assert {"words", "history", "similarity", "mauve"} < set(names) and len(names) == 11
    assert all(isinstance(build_estimator(name, 0, "hashing", None), Estimator) for name in names)
    assert settings_of("mauve", 3, "hashing", None) == {"seed": 3, "encoder": "hashing"}
