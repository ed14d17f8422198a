"""A model behind an endpoint as the user of a dialogue: its prompt, and what it says.

It gets the scenario's instructions for users and the dialogue as messages. Its prompt is rendered by a server that may
read control tokens in a message as such: marks that look like one are broken up, so that nobody forges a role.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from calibrated_rl.chat.tokens import audible
from calibrated_rl.data.dialogue import Finish, Scenario, Side, Turn
from calibrated_rl.endpoints.requests import LENGTH, STOP, Answer, ChatRequest
from calibrated_rl.errors import Party, RolloutFailure

if TYPE_CHECKING:
    from calibrated_rl.endpoints.client import EndpointClient

_CONTROL = re.compile(r"<(?=[|｜])|(?<=[|｜])>|<(?=/?[A-Za-z_]{1,32}>)|\[(?=/?[A-Z_]{2,16}\])")
"""What could be part of a control token: ``<|end|>``, ``</s>``, ``<start_of_turn>``, ``[INST]``."""
ZERO_WIDTH_SPACE = "\u200b"


def plain(text: str) -> str:
    """``text`` with nothing in it that a tokenizer reads as a control token, nor what JSON cannot carry; it looks the
    same."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _CONTROL.sub(lambda mark: f"{mark[0]}{ZERO_WIDTH_SPACE}" if mark[0] != ">" else f"{ZERO_WIDTH_SPACE}>", text)


def messages_of(scenario: Scenario, turns: Sequence[Turn], secret_after: str) -> list[dict[str, str]]:
    """The dialogue as the user's model sees it: what the policy says are messages to it, its own turns are its answers.

    Args:
        secret_after: of a turn of the policy that begins with these words only they are heard.
    """
    messages = [{"role": "system", "content": plain(scenario.user_instructions)}] if scenario.user_instructions else []
    for turn in turns:
        if turn.side is Side.POLICY:
            messages.append({"role": "user", "content": plain(audible(turn.text, secret_after))})
        else:
            messages.append({"role": "assistant", "content": plain(turn.text)})
    return messages


class EndpointUser:
    """One endpoint that speaks for users. It has no weights here: nothing can calibrate it or score with it."""

    version = 0
    """As of simulators: it never changes."""

    def __init__(
        self, client: "EndpointClient", *, temperature: float, max_tokens: int, secret_after: str = "",
        same_for_all: bool = False,
    ) -> None:  # fmt: skip
        """``same_for_all``: what it says depends on scenario and turns alone, so that all arms meet the same user."""
        self.name = client.name
        self.same_for_all = same_for_all
        self._client, self._secret_after = client, secret_after
        self._temperature, self._max_tokens = temperature, max_tokens

    async def respond(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> tuple[str, Finish, bool]:
        """What it says after ``turns``, how that ended, and whether it ended within a thought.

        Raises:
            RolloutFailure: the endpoint did not answer this request, or its filter held the answer back.
            EndpointStopped: it will answer none.
        """
        answer: Answer = await self._client.answer(
            ChatRequest(
                messages=messages_of(scenario, turns, self._secret_after),
                seed=seed,
                temperature=self._temperature,
                max_tokens=self._max_tokens,
            )  # fmt: skip
        )
        if answer.finish not in (STOP, LENGTH) and not answer.text.strip():
            raise RolloutFailure(f"endpoint {self.name}: {answer.finish}", Party.USER)
        finish = Finish.LENGTH if answer.finish == LENGTH else Finish.STOP
        return answer.text.strip(), finish, answer.unfinished_thought
