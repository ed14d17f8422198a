"""What a run has found, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.config.run_config import RunConfig, load_config
from calibrated_rl.errors import UserError
from calibrated_rl.report.text import table
from calibrated_rl.report.values import Interval, interval, look_up, mapping
from calibrated_rl.storage.files import read_json

if TYPE_CHECKING:
    from calibrated_rl.data.dialogue import Dialogue

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm over all its seeds. None stands for what was not measured; intervals are of 95 %."""

    name: str
    reward: Interval | None
    """Mean return of a dialogue with held-out people."""
    success: Interval | None
    """Share of these dialogues that succeed."""
    turns: Interval | None
    """Their mean number of policy turns."""
    updates: int | None
    policy_tokens: float | None
    """Tokens of the policy that it learned from, as a mean over seeds; the next three likewise."""
    user_tokens: float | None
    """Tokens that simulators spoke for it."""
    human_turns: float | None
    """Turns that people were asked for."""
    seconds: float | None
    """Of training, by the clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run folder with its summary."""

    folder: Path
    config: RunConfig
    summary: Mapping[str, Any]
    """All figures, as ``summary.json`` has them."""

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder.resolve() / "report.html"

    @property
    def arms(self) -> dict[str, ArmResult]:
        """By name, in the order in which they were run."""
        return {name: _arm(name, found) for name, found in mapping(self.summary, "arms").items()}

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences of held-out reward, by ``A-B`` (A minus B)."""
        found = {pair: interval(raw) for pair, raw in mapping(self.summary, "paired").items()}
        return {pair: difference for pair, difference in found.items() if difference is not None}

    def policy(self, arm: str = "calibrated", seed: int = 0) -> Path:
        """Folder of a trained policy, in Hugging Face format.

        Raises:
            UserError: there is none; names those there are.
        """
        from calibrated_rl.run.saved_run import open_run

        return open_run(self.folder).policy(f"{arm}-{seed}").folder

    def dialogues(self, arm: str) -> "list[Dialogue]":
        """Those that ``arm`` was trained on, of all its seeds; ``ARM/held_out``: those it was judged by; ``logs``: the
        human logs.

        Raises:
            UserError: there are none; names what there is.
        """
        from calibrated_rl.shift.sources import read_source

        return read_source(f"{self.folder}@{arm}").dialogues

    def table(self) -> str:
        """The arms as lines of text, as ``jobs/compare.py`` prints them."""
        return table(self.summary)


def _arm(name: str, found: Mapping[str, Any]) -> ArmResult:
    held_out = {figure: interval(look_up(found, "held_out", figure)) for figure in ("reward", "success", "turns")}
    spent = {each: _mean(found, each) for each in ("policy_tokens", "user_tokens", "human_turns", "seconds")}
    updates = _mean(found, "updates")
    return ArmResult(name=name, updates=None if updates is None else round(updates), **held_out, **spent)  # type: ignore[arg-type]


def _mean(found: Mapping[str, Any], figure: str) -> float | None:
    value = interval(found.get(figure))
    return None if value is None else value.mean


def read_run(folder: Path | str) -> RunResult:
    """What the finished run in ``folder`` has found. Starts nothing.

    Raises:
        UserError: it is no run folder, or no arm of it is finished.
    """
    from calibrated_rl.run.saved_run import config_file

    folder = Path(folder)
    file = config_file(folder)
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder} has no {SUMMARY}: the run is not finished; the same command goes on with it")
    return RunResult(folder=folder, config=load_config(file, saved=True), summary=read_json(folder / SUMMARY))
