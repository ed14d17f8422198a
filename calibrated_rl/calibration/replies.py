"""Human replies on logged histories, and those that the simulator being aligned gives on the same histories."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from calibrated_rl.calibration.sft import turns_of_models
from calibrated_rl.chat.tokens import ChatTokens, SideView, view_of
from calibrated_rl.data.dialogue import Dialogue, Side, TokenSequence, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class HumanReply:
    """A logged human turn; what stands before it is the history that it answers."""

    log: Dialogue
    index: int
    """Of the turn in ``log.turns``."""

    @property
    def text(self) -> str:
        return self.log.turns[self.index].text

    @property
    def history(self) -> tuple[Turn, ...]:
        return self.log.turns[: self.index]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampledReply:
    """What the simulator said on a history."""

    text: str
    tokens: TokenSequence
    """The dialogue as the simulator sees it, up to its reply, which alone is masked: ids as they were sampled, with
    their log-probs."""


SampleReplies = Callable[[Sequence[HumanReply], int, int], list[list[SampledReply]]]
"""Samples from the simulator being aligned: so many replies on the history of each human reply, with a seed. Sends the
weights of the learner's slot ``SIMULATOR`` to the simulator's replicas first. A history's list is empty where that
failed: an engine failed, or the simulator broke each of its tries."""


def human_replies(logs: Sequence[Dialogue]) -> list[HumanReply]:
    """Every human turn of ``logs``, in order; of a log that a human was asked about that is the reply alone."""
    return [
        HumanReply(log=log, index=index)
        for log in logs for index in log.user_turn_indices() if index not in turns_of_models(log)
    ]  # fmt: skip


def history_view(chat: ChatTokens, reply: HumanReply) -> SideView:
    """The history of ``reply`` as the simulator sees it, up to where its reply begins; nothing in it is masked."""
    return view_of(chat, reply.log.scenario, Side.USER, reply.history).without_mask()


def human_tokens(chat: ChatTokens, reply: HumanReply) -> TokenSequence:
    """The dialogue as the simulator would see it if it gave the human's reply, which alone is masked."""
    view = history_view(chat, reply)
    view.speak_text(reply.text)
    return view.sequence()
