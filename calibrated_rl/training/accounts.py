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
    seen: bool = False

    def groups(self) -> int:
        return max(1, round(self.tokens / self.per_group))

    def saw(self, tokens: int, groups: int) -> None:
        """Groups in which the policy did not come to speak, not one of them, say nothing of how many it takes."""
        if not tokens:
            return
        now = tokens / max(groups, 1)
        self.per_group = 0.5 * self.per_group + 0.5 * now if self.seen else now
        self.seen = True


def tokens_of_users(group: Sequence[Dialogue]) -> int:
    """Tokens that the simulator sampled for a group; its opening turn was sampled once."""
    views = [dialogue.user_tokens for dialogue in group if dialogue.user_tokens is not None]
    openings = [int((view.mask & (view.turns == 1)).sum()) for view in views]
    return sum(int(view.mask.sum()) for view in views) - sum(openings[1:])


def turns_of_people(group: Sequence[Dialogue]) -> int:
    """Turns that scripted people said in a group; its opening turn was said once."""
    scripted = [sum(turn.source is Source.SCRIPTED for turn in dialogue.turns) for dialogue in group]
    return sum(scripted) - (len(group) - 1) if any(scripted) else 0


NO_SIGNAL = "without signal (its rewards were all equal)"
"""Why a group is not learned from that another one was asked for in place of (``training.extra_groups``)."""

LEFT_OVER = "left over (another one, of an attempt at the update that was lost, was learned from)"
"""Why a group is not learned from that was asked for once more after a restart."""


def why_nothing_was_learned(metrics: Mapping[str, float]) -> str:
    """For an update without a single optimizer step."""
    if metrics.get("skipped_steps"):
        return "nothing learned: no step was finite"
    if metrics.get("masked_share"):
        return "nothing learned: the correction rejected every token"
    return "no token of the policy"  # users never let it speak


def signal_notice(shares: Sequence[float]) -> str | None:
    """What to say after an update of the shares of groups whose rewards differed in all updates so far; None: nothing.
    Of many updates in a row without any, it is said after 1, 2, 4, 8, ... of them, and when it is over."""

    def without(values: Sequence[float]) -> int:
        return next((number for number, share in enumerate(reversed(values)) if share), len(values))

    now, before = without(shares), without(shares[:-1])
    if now and now & (now - 1) == 0:
        updates = "this update" if now == 1 else f"{now} updates in a row"
        return (
            f"nothing to learn from in {updates}: the rewards within each group were all equal (is the task too easy "
            "or too hard for the policy, or its reward constant? training.extra_groups asks for other groups instead)"
        )
    return f"rewards differ again, after {before} updates in which they did not" if before and not now else None
