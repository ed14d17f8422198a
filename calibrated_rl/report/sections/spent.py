"""What each arm cost, mean over its seeds."""

from dataclasses import dataclass
from typing import ClassVar

from calibrated_rl.report.arms import ArmStyle, style
from calibrated_rl.report.run_files import RunFiles
from calibrated_rl.report.values import finite, look_up, mapping


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
class Paid:
    """What one endpoint was asked and paid for, by the whole run; None where that is not known."""

    name: str
    answers: float | None
    prompt_tokens: float | None
    completion_tokens: float | None
    cost: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    template: ClassVar[str] = "spent.jinja"
    arms: list[Budget]
    endpoints: list[Paid]


def view(run: RunFiles) -> Spent:
    endpoints = mapping(run.summary, "endpoints")
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
        ],
        [
            Paid(
                name=name,
                answers=finite(look_up(endpoints, name, "answers")),
                prompt_tokens=finite(look_up(endpoints, name, "prompt_tokens")),
                completion_tokens=finite(look_up(endpoints, name, "completion_tokens")),
                cost=finite(look_up(endpoints, name, "cost")),
            )
            for name in endpoints
        ],
    )
