"""Settings of parts of users: what their annotations may be, and what no part may have as its Config."""

import enum
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from calibrated_rl.components.component import build, strict_config
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import (
    Positive,
    Range,
    Seed,
    check_settings,
)


@dataclass(frozen=True)
class Login:
    password: str = ""


def test_a_secret_that_is_not_there_is_not_advised_to_be_spelt_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"key 'password': the environment variable NOT_SET is not set; set it$"):
        strict_config(Login, {"password": "${oc.env:NOT_SET}"}, "here")


def test_a_secret_is_not_shown_where_its_value_is_refused() -> None:
    with pytest.raises(UserError, match=r"password is \*\*\* \(a secret\): write text in quotes"):
        strict_config(Login, {"password": 4711}, "here")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    depth: Positive
    """No default: it must be given."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """What somebody else's part may have."""

    colour: Colour = Colour.RED
    place: Path = Path()
    mean: Annotated[float, Range(at_least=0)] | None = None
    either: int | str = 1
    pair: tuple[Positive, str] = (1, "a")
    inner: dict[str, Inner] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    seed: Seed = 0


def test_annotations_of_other_peoples_parts() -> None:
    values = {
        "colour": "BLUE", "place": "a/b", "mean": 2, "either": "3", "pair": [2, "b"], "inner": {"x": {"depth": 1}},
    }  # fmt: skip
    made = strict_config(Own, values | {"weights": {1: 2}, "seed": "5"}, "here")
    assert made == Own(
        colour=Colour.BLUE, place=Path("a/b"), mean=2.0, either="3", pair=(2, "b"), inner={"x": Inner(1)},
        weights={1: 2.0}, seed=5,
    )  # fmt: skip
    assert strict_config(Own, {"mean": None}, "here") == Own()
    for wrong, words in (
        ({"colour": "GREEN"}, "here: colour is 'GREEN': choose RED or BLUE"),
        ({"mean": -1}, "mean is -1: it must be at least 0"),
        ({"pair": [1]}, "pair has 1 entries: write 2"),
        ({"inner": {"x": {}}}, "inner.x.depth is missing and has no default"),
        ({"inner": {"x": {"depht": 1}}}, "unknown key 'inner.x.depht'; did you mean 'inner.x.depth'?"),
        ({"weights": {"a": 1}}, "unknown key 'weights.a'"),
    ):
        with pytest.raises(UserError) as refused:
            strict_config(Own, wrong, "here")
        assert words in str(refused.value)
    assert pickle.loads(pickle.dumps(made)) == made
    check_settings(made, "own")
    with pytest.raises(UserError, match=r"own.inner.x.depth is 0: it must be at least 1"):
        check_settings(Own(inner={"x": Inner(0)}), "own")


PARTS = {
    "NoDataclass": "NoDataclass.Config is no dataclass: write @dataclass",
    "Thawed": "Thawed.Config is not frozen",
    "Undecorated": "Undecorated.Config is no dataclass",
    "Number": "3 is no class",
    "Bare": "it has no Config dataclass",
    "function": "is no class",
    "Odd": "Odd.Config.stream is annotated with BytesIO, which a YAML file cannot contain",
    "Lost": "Lost.Config: its annotations cannot be read: name 'Nowhere' is not defined",
    "Needy": "size is missing and has no default",
    "Picky": "Config",
}
PARTS_FILE = """
import io
from dataclasses import dataclass

class NoDataclass:
    class Config:
        size = 3

class Thawed:
    @dataclass
    class Config:
        size: int = 3

class Base:
    @dataclass(frozen=True)
    class Config:
        size: int = 3

class Undecorated:
    class Config(Base.Config):
        size: int = 4

class Number:
    Config = 3

class Bare:
    pass

def function():
    pass

class Odd:
    @dataclass(frozen=True)
    class Config:
        stream: io.BytesIO = None

class Lost:
    @dataclass(frozen=True)
    class Config:
        size: "Nowhere" = 3

class Needy:
    @dataclass(frozen=True)
    class Config:
        size: int

class Picky:
    @dataclass(frozen=True)
    class Config:
        size: int = 3
        def __post_init__(self):
            raise TypeError("Config of mine")
"""


@pytest.mark.parametrize("name", PARTS)
def test_parts_whose_config_is_none_are_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "parts_without_config.py"
    file.write_text(PARTS_FILE)
    with pytest.raises(UserError) as refused:
        build(f"{file}:{name}", {}, "task_config")
    assert PARTS[name] in str(refused.value) and "task_config" in str(refused.value)
