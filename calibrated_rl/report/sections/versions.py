"""The versions of what the run stands on."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import mapping


@dataclass(frozen=True, slots=True)
class Versions:
    template: ClassVar[str] = "versions.jinja"
    versions: dict[str, str]


def view(run: RunFiles) -> Versions:
    versions = mapping(run.summary, "versions")
    return Versions({name: str(versions[name]) for name in sorted(versions)})
