"""What an arm is charged for, how many groups fit its budget, and the notices about groups without signal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrated_rl.data.dialogue import Dialogue, Source


@dataclass
class TokenBudget:
    """How many groups give about the same number of loss tokens in every update of every arm."""

    tokens: int
    per_group: float
    """Running mean of policy tokens a group; at first what the logs suggest."""
    measured: bool = False
    """Whether ``per_group`` comes from the arm's own groups."""

    def groups(self) -> int:
        return max(1, round(self.tokens / self.per_group))

    def saw(self, tokens: int, groups: int) -> None:
        """Groups in which the policy did not come to speak, not one of them, say nothing of how many it takes."""
        if not tokens:
            return
        latest = tokens / max(groups, 1)
        self.per_group = 0.5 * self.per_group + 0.5 * latest if self.measured else latest
        self.measured = True


def tokens_of_users(group: Sequence[Dialogue]) -> int:
    """Tokens that the simulator sampled for a group; all its dialogues share the opening turn, which counts once."""
    views = [dialogue.user_tokens for dialogue in group if dialogue.user_tokens is not None]
    openings = [int((view.mask & (view.turns == 1)).sum()) for view in views]
    return sum(int(view.mask.sum()) for view in views) - sum(openings[1:])


def human_turns_of(group: Sequence[Dialogue]) -> int:
    """Turns of scripted humans in a group; all its dialogues share the opening turn, which counts once."""
    scripted = [sum(turn.source is Source.SCRIPTED for turn in dialogue.turns) for dialogue in group]
    return sum(scripted) - (len(group) - 1) if any(scripted) else 0


NO_SIGNAL = "without signal (its rewards were all equal)"
"""Why the learner does not use a group that another one replaced (``training.extra_groups``)."""

LEFT_OVER = "left over (another one, of an attempt at the update that was lost, was learned from)"
"""Why the learner does not use a group that was requested once more after a restart."""


def why_nothing_was_learned(metrics: Mapping[str, float]) -> str:
    """For an update without a single optimizer step."""
    if metrics.get("skipped_steps"):
        return "nothing learned: no step was finite"
    if metrics.get("masked_share"):
        return "nothing learned: the correction rejected every token"
    return "no token of the policy"  # users never let it speak


def signal_notice(shares: Sequence[float]) -> str | None:
    """The line to log after an update; None: no line. ``shares``: of groups whose rewards differed, by update so far.
    In a row of updates without such a group, it is logged after 1, 2, 4, 8, ... of them, and when the row ends."""

    def without(values: Sequence[float]) -> int:
        return next((number for number, share in enumerate(reversed(values)) if share), len(values))

    silent_updates, silent_updates_before = without(shares), without(shares[:-1])
    if silent_updates and silent_updates & (silent_updates - 1) == 0:
        updates = "this update" if silent_updates == 1 else f"{silent_updates} updates in a row"
        return (
            f"nothing to learn from in {updates}: the rewards within each group were all equal (is the task too easy "
            "or too hard for the policy, or its reward constant? training.extra_groups requests other groups instead)"
        )
    return (
        f"rewards differ again, after {silent_updates_before} updates in which they did not"
        if silent_updates_before and not silent_updates
        else None
    )
