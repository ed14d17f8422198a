"""What each arm cost, mean over its seeds."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.arms import ArmStyle, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite


@dataclass(frozen=True, slots=True)
class Budget:
    """What one arm was given, and took; None where that is not known."""

    style: ArmStyle
    updates: float | None
    policy_tokens: float | None
    user_tokens: float | None
    human_turns: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    template: ClassVar[str] = "spent.jinja"
    arms: list[Budget]


def view(run: RunFiles) -> Spent:
    return Spent(
        [
            Budget(
                style=style(arm),
                updates=finite(metrics.get("updates")),
                policy_tokens=finite(metrics.get("policy_tokens")),
                user_tokens=finite(metrics.get("user_tokens")),
                human_turns=finite(metrics.get("human_turns")),
                seconds=finite(metrics.get("seconds")),
            )
            for arm, metrics in run.arms().items()
        ]
    )
