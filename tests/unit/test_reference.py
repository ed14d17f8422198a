"""docs/reference/: what is committed is what the code says, and it says something of every key and public name."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import pytest

import calibrated_rl as crl
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.settings.fields import Name, NotNegative, OneOf, PartPath, Positive, Range, valid_keys
from tests.support.paths import ROOT
from tools.reference.__main__ import PAGES
from tools.reference.keys import Key, allowed_text, default_of, keys_of, yaml
from tools.reference.names import GROUPS, names_page
from tools.reference.page import sections
from tools.reference.parts import kinds

FOLDER = ROOT / "docs" / "reference"


@dataclass(frozen=True)
class Inner:
    """What lies inside."""

    depth: float = 0.00001


@dataclass(frozen=True)
class Base:
    """A base."""

    rounds: Positive = 3
    """How often | at most."""


@dataclass(frozen=True)
class Made(Base):
    """Some keys.

    Not shown.
    """

    rounds: Positive = 4
    kind: Literal["a", "b"] = "a"
    """``a`` or
    ``b``."""
    inner: Inner = field(default_factory=Inner)
    named: dict[Name, Inner] = field(default_factory=dict)
    """By name."""
    maybe: NotNegative | None = None
    text: str = ""


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_what_the_generator_gives(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run: make docs (python -m tools.reference)"


def test_every_public_name_is_on_its_page_once() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == crl.__all__
    made = names_page()
    assert "### `compare`" in made
    assert "- `overrides`: `key=value`, or further YAML files" in made, "arguments are a list"
    assert "- `reply(scenario: Scenario, turns: Sequence[Turn]) -> str`: What the user" in made
    assert "- `reward: float`: Terminal reward, all costs included" in made, "fields are a list"


def all_keys() -> Iterator[tuple[str, Key]]:
    """All keys of runs and of parts, with where they stand."""
    of_run = [("", RunConfig), *((place, cls) for cls, places in sections() for place in places)]
    of_parts = [(part.name, part.cls.Config) for kind in kinds() for part in kind.parts]  # type: ignore[attr-defined]
    for where, cls in [*of_run, *of_parts]:
        yield from ((where, key) for key in keys_of(cls))


def test_every_key_says_what_it_is() -> None:
    silent = [f"{where}: {key.name}" for where, key in all_keys() if not key.text and key.section is None]
    assert not silent, "write a string below the field"


def test_no_key_is_missing_and_no_part() -> None:
    keys = {f"{where}.{key.name}".lstrip(".") for where, key in all_keys()}
    assert valid_keys(RunConfig) <= keys
    parts = {part.cls.__name__ for kind in kinds() for part in kind.parts}
    assert {"FrontDesk", "Casino", "FrontDeskHuman", "JsonLines", "WeightedSFT", "GRPO", "RLOO", "Similarity"} <= parts
    assert not {"PolicyLoss", "ClippedLoss"} & parts, "these are bases, which cannot be built"


def test_sections_begin_with_the_defaults_that_the_page_shows() -> None:
    """A section has one table, wherever it stands."""

    def check(cls: type) -> None:
        for own, key in zip((f for f in fields(cls) if f.init), keys_of(cls), strict=True):
            if key.section is not None and not key.is_mapping:
                assert own.default_factory() == key.section(), key.name  # type: ignore[misc]
                check(key.section)

    check(RunConfig)


def test_a_key_is_described_by_its_field() -> None:
    found = {key.name: key for key in keys_of(Made)}
    inherited, allowed = "How often | at most.", "whole number, at least 1"
    assert found["rounds"] == Key(name="rounds", default="4", allowed=allowed, text=inherited)
    assert found["kind"].allowed == "`a` or `b`" and found["kind"].text == "`a` or `b`."
    assert found["inner"].section is Inner and not found["inner"].is_mapping and found["inner"].default == ""
    assert found["named"].section is Inner and found["named"].is_mapping
    assert found["named"].allowed == "mapping of names to the keys below"
    assert found["maybe"].default == "null" and found["maybe"].allowed == "whole number, at least 0 or `null`"
    assert found["text"].default == '""' and found["text"].text == ""
    assert default_of(fields(Inner)[0]) == "1e-5"


def test_what_annotations_allow_is_said_allowed_text() -> None:
    said: dict[Any, str] = {
        bool: "`true` or `false`", Annotated[float, Range(above=0, below=1)]: "number, above 0 and below 1",
        PartPath: "an import path: package.module:Class or file.py:Class",
        list[Positive]: "list, each whole number, at least 1",
        dict[str, Any]: "mapping", dict[Name, Name]: "mapping of names to text, not empty",
        tuple[int, ...]: "list, each whole number", tuple[int, str]: "list of 2: whole number; text",
        Annotated[str, OneOf(("x", "y"))]: "`x` or `y`",
    }  # fmt: skip
    for hint, words in said.items():
        assert allowed_text(hint) == words
    assert yaml({"a": [1, "b c", "d, e"], "f": None}) == '{a: [1, b c, "d, e"], f: null}'
