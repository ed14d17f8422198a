"""Replies token by token: prompts whose earlier own turns are the sampled tokens, and text for clients that stream."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from calibrated_rl.chat.tokens import ChatTokens, SideView
from calibrated_rl.data.dialogue import Finish, Scenario, Side, Turn

_BROKEN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class SampledTurns:
    """Token ids of own turns that were served lately, by what was said before and in them.

    A client sends earlier turns back as text, and encoding that again may give other tokens than were sampled
    (docs/architecture.md, contract 1), and never the reasoning before them. So the ids are remembered. A turn that
    has been forgotten, or was never served from here, is encoded from its text.
    """

    def __init__(self, most: int = 20_000) -> None:
        """``most``: turns that are remembered, those that were used last."""
        self._most = most
        self._ids: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def remember(self, history: bytes, ids: Sequence[int]) -> None:
        """``history``: ``Histories.digest`` up to the end of the turn."""
        self._ids[history] = tuple(ids)
        self._ids.move_to_end(history)
        while len(self._ids) > self._most:
            self._ids.popitem(last=False)

    def recall(self, history: bytes) -> tuple[int, ...] | None:
        """The ids of the turn that ends ``history``."""
        ids = self._ids.get(history)
        if ids is not None:
            self._ids.move_to_end(history)
        return ids


class History:
    """A digest of instructions and turns, turn by turn."""

    def __init__(self, model: str, instructions: str) -> None:
        self._hash = blake3()
        self.add(model)
        self.add(instructions)

    def add(self, text: str) -> bytes:
        """The digest with ``text`` at its end."""
        data = text.encode("utf-8", errors="surrogatepass")
        self._hash.update(len(data).to_bytes(8, "little") + data)
        return self._hash.digest()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the engine continues."""

    ids: list[int]
    history: History
    """Of all that was said, for the reply to be remembered with."""


def prompt_for(
    tokens: ChatTokens, model: str, scenario: Scenario, side: Side, turns: Sequence[Turn], sampled: SampledTurns
) -> Prompt:
    """The prompt of ``side`` after ``turns``, the first of which is the greeting: the ids that a rollout would have,
    with own turns as they were sampled."""
    view = SideView(tokens, scenario, side)
    instructions = scenario.policy_instructions if side is Side.POLICY else scenario.user_instructions
    history = History(model, instructions)
    for index, turn in enumerate(turns):
        so_far = history.add(turn.text)
        if turn.side is side and index > 0:
            ids = sampled.recall(so_far)
            if ids is None:
                view.speak_text(turn.text)
            else:
                view.speak(ids)
        else:
            view.hear(turn)
    return Prompt(view.prompt_ids, history)


class ReplyText:
    """The text of a reply while its tokens arrive: what has been said for certain, without reasoning."""

    def __init__(self, tokens: ChatTokens) -> None:
        self._tokens = tokens
        self.ids: list[int] = []
        self._sent = ""

    def add(self, ids: Sequence[int]) -> str:
        """Take further ids; returns the text to send now, which may be empty."""
        self.ids.extend(ids)
        return self._advance(finished=False)

    def finish(self) -> str:
        """The rest of the text, after the last ids."""
        return self._advance(finished=True)

    @property
    def text(self) -> str:
        """All that has been said so far."""
        return self._tokens.decode(self.ids)

    @property
    def how(self) -> Finish:
        """How the reply ended."""
        return self._tokens.finish(self.ids)

    def _advance(self, finished: bool) -> str:
        text, thinking = self._tokens.spoken(self.ids)
        if not finished:
            if self._tokens.may_think and (thinking or not self._thought_through()):
                return ""  # what looks like speech may yet turn out to have been a thought
            # A character may take several tokens, and white space at the end is only said if something follows.
            text = text.rstrip(_BROKEN_CHARACTER).rstrip()
        if not text.startswith(self._sent):
            return ""
        new = text[len(self._sent) :]
        self._sent = text
        return new

    def _thought_through(self) -> bool:
        return self._tokens.has_closed_reasoning(self.ids)
