"""The results of a run, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrated_rl.config.load import load_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.report.deployed import GREEDY, SAMPLED, deployed
from calibrated_rl.report.text import table
from calibrated_rl.report.values import Interval, interval, look_up, mapping
from calibrated_rl.storage.files import read_json

if TYPE_CHECKING:
    from calibrated_rl.data.dialogue import Dialogue

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm over all its seeds. None: not measured; intervals are of 95 %."""

    name: str
    reward: Interval | None
    """Mean return of a dialogue with held-out users, of the greedy policy: as it is deployed."""
    reward_sampled: Interval | None
    """The same at the temperature of training."""
    success: Interval | None
    """Share of the greedy dialogues that succeed."""
    turns: Interval | None
    """Their mean number of policy turns."""
    updates: int | None
    policy_tokens: float | None
    """Tokens of the policy that it learned from, as a mean over seeds; the next three likewise."""
    user_tokens: float | None
    """Tokens that simulators sampled for it; None where these are behind an API (``summary["endpoints"]``)."""
    human_turns: float | None
    """Turns that were requested of humans."""
    seconds: float | None
    """Wall-clock time of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run folder with its summary."""

    folder: Path
    config: RunConfig
    summary: Mapping[str, Any]
    """The content of ``summary.json``."""

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder.resolve() / "report.html"

    @property
    def arms(self) -> dict[str, ArmResult]:
        """By name, in the order in which they were run."""
        return {name: _arm(name, arm_summary) for name, arm_summary in mapping(self.summary, "arms").items()}

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences of held-out reward, by ``A-B`` (A minus B): of greedy policies, as they are deployed; of
        sampled ones where the run has no others. ``summary["paired"]`` has those of sampled ones, too."""
        raw_differences = mapping(self.summary, deployed(self.summary).paired)
        differences = {pair: interval(raw) for pair, raw in raw_differences.items()}
        return {pair: difference for pair, difference in differences.items() if difference is not None}

    def policy(self, arm: str = "calibrated", seed: int = 0) -> Path:
        """Folder of a trained policy, in Hugging Face format.

        Raises:
            UserError: there is none; lists the existing ones.
        """
        from calibrated_rl.run.saved_run import open_run

        return open_run(self.folder).policy(f"{arm}-{seed}").folder

    def dialogues(self, arm: str) -> "list[Dialogue]":
        """The dialogues that ``arm`` was trained on, of all its seeds; ``ARM/held_out``: those of its evaluation;
        ``logs``: the human logs.

        Raises:
            UserError: there are none; lists the existing sets.
        """
        from calibrated_rl.shift.sources import read_source

        return read_source(f"{self.folder}@{arm}").dialogues

    def table(self) -> str:
        """The arms as lines of text, as ``jobs/compare.py`` prints them."""
        return table(self.summary)


def _arm(name: str, summary: Mapping[str, Any]) -> ArmResult:
    greedy = {m: interval(look_up(summary, GREEDY.setting, m)) for m in ("reward", "success", "turns")}
    sampled = interval(look_up(summary, SAMPLED.setting, "reward"))
    costs = {metric: _mean(summary, metric) for metric in ("policy_tokens", "user_tokens", "human_turns", "seconds")}
    updates = _mean(summary, "updates")
    n_updates = None if updates is None else round(updates)
    return ArmResult(name=name, updates=n_updates, reward_sampled=sampled, **greedy, **costs)  # type: ignore[arg-type]


def _mean(summary: Mapping[str, Any], metric: str) -> float | None:
    value = interval(summary.get(metric))
    return None if value is None else value.mean


def read_run(folder: Path | str) -> RunResult:
    """The results of the finished run in ``folder``. Starts nothing.

    Raises:
        UserError: it is no run folder, or no arm of it is finished.
    """
    from calibrated_rl.run.saved_run import config_file

    folder = Path(folder)
    file = config_file(folder)
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder} has no {SUMMARY}: the run is not finished; the same command resumes it")
    return RunResult(folder=folder, config=load_config(file, saved=True), summary=read_json(folder / SUMMARY))
