"""The page of all keys, in Markdown that a forge and the docs site both show."""

import importlib
import inspect
from collections.abc import Iterator

from calibrated_rl.config.arms import Arm
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.settings.fields import listed
from calibrated_rl.weight_sync.base import Transport
from tools.reference.keys import Key, keys_of, markdown, text_of
from tools.reference.parts import Kind, Part, arms, kinds

HEAD = """<!-- Made by `make docs` out of the dataclasses in calibrated_rl (tools/reference/); do not edit. -->

# Every key of a config

A config is a YAML file, see `configs/`. Keys stand below each other as the dots say: `training.updates=60` on the
command line is `training: {updates: 60}` in the file. [Settings](../settings.md) says what counts as a number, a text
or a truth value, and how mistakes are reported; parts of your own declare their allowed values in the same way.

An *import path* is `package.module:Class` or `path/to/file.py:Class`.
"""

TRANSPORTS = {
    Transport.OBJECT_STORE: "where neither of the others is requested",
    Transport.SHARED_MEMORY: "`learner.share_weights: true`",
    Transport.LORA: "for a model that `learner.lora` names",
}


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## The run", "", text_of(RunConfig), "", *table(keys_of(RunConfig))]
    for cls, keys in sections():
        title = ", ".join(f"`{key}`" for key in keys)
        lines += ["", f"## {title}", "", text_of(cls), "", *table(keys_of(cls))]
    for part_kind in kinds():
        lines += ["", f"## {part_kind.title}", "", "```yaml", part_kind.place, "```", ""]
        lines.append(f"One of your own implements `{part_kind.protocol}`.")
        for part in part_kind.parts:
            lines += part_lines(part)
        lines += shared_lines(part_kind)
    return "\n".join([*lines, *arm_lines(), *transport_lines()]) + "\n"


def sections() -> list[tuple[type, list[str]]]:
    """The dataclasses below that of a run, each with its keys, in order of appearance."""
    keys_by_class: dict[type, list[str]] = {}

    def collect(cls: type, prefix: str) -> None:
        for key in keys_of(cls):
            if key.section is not None:
                path = f"{prefix}{key.name}" + (".NAME" if key.is_mapping else "")
                keys_by_class.setdefault(key.section, []).append(path)
                collect(key.section, f"{path}.")

    collect(RunConfig, "")
    return list(keys_by_class.items())


def table(keys: list[Key]) -> list[str]:
    """One row a key."""
    if not keys:
        return ["Nothing to set."]
    rows = ["| key | default | allowed | description |", "|---|---|---|---|"]
    for key in keys:
        default = f"`{key.default}`" if key.default else ""
        allowed = key.allowed or "*section, below*"
        text = key.text or (text_of(key.section) if key.section else "")
        cells = (f"`{key.name}`", default, allowed, text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def part_lines(part: Part) -> Iterator[str]:
    """One part: its description and its keys."""
    module = importlib.import_module(part.cls.__module__)
    config = part.cls.Config  # type: ignore[attr-defined]
    yield from ("", f"### `{part.name}`", "", markdown(module.__doc__), "", *table(keys_of(config)))


def shared_lines(part_kind: Kind) -> Iterator[str]:
    """Sections within the settings of parts, each once."""
    parts_by_section: dict[tuple[str, type], list[str]] = {}
    for part in part_kind.parts:
        for key in keys_of(part.cls.Config):  # type: ignore[attr-defined]
            if key.section is not None:
                parts_by_section.setdefault((key.name, key.section), []).append(part.cls.__name__)
    for (name, cls), part_names in parts_by_section.items():
        yield from ("", f"### `{name}` of {listed(part_names, 'and')}", "", *table(keys_of(cls)))


def arm_lines() -> list[str]:
    """All arms, which have no settings of their own."""
    lines = ["", "## Arms", "", "```yaml", "arms: [ARM, ...]", "```", ""]
    lines += ["One of your own derives from `calibrated_rl.config.arms:Arm`.", ""]
    lines += ["| arm | what it does | answered by | its simulator is aligned |", "|---|---|---|---|"]
    return lines + [f"| `{arm.name}` | {_purpose(arm)} | {arm.meets} | {arm.calibrates} |" for arm in arms()]


def _purpose(arm: type[Arm]) -> str:
    return markdown(inspect.getmodule(arm).__doc__)  # type: ignore[union-attr]


def transport_lines() -> list[str]:
    """How weights get from the learner to the replicas."""
    lines = ["", "## Transports of weights", ""]
    lines += ["No key names them: which one carries an update follows from other keys.", ""]
    lines += ["| transport | taken | what it does |", "|---|---|---|"]
    for transport in Transport:
        module = importlib.import_module(f"calibrated_rl.weight_sync.{transport.value}")
        lines.append(f"| `{transport.value}` | {TRANSPORTS[transport]} | {markdown(module.__doc__)} |")
    return lines
