"""MathChat: a person wants to know the answer to a problem of mathematics, and tells it as people do, bit by bit.

After MATH-Chat of CollabLLM (Wu et al. 2025, arXiv 2502.00640). The policy does not see the problem: it asks, and ends
the dialogue with a line such as ``Answer: 72``. Reward: 1 for the right answer, less ``word_cost`` for each word that
the policy wrote, but never below 0; 0 without the right answer. Success is the right answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.math_chat.answers import answer_of, is_right
from calibrated_rl.examples.math_chat.problems import MathProblem, ProblemSource, read_problems, split_problems
from calibrated_rl.settings.fields import Positive, Range, check_settings

ANSWERED = "answered"
GREETING = "Hi! What are you working on?"
POLICY_INSTRUCTIONS = (
    "You help a person with a problem of mathematics. You do not see it: ask for what you need, in short messages. "
    "When you know the answer, end your message with a line like this:\nAnswer: 12"
)
USER_INSTRUCTIONS = (
    "You are a student with this problem of mathematics, which you cannot solve:\n{question}\nYou ask an assistant for "
    "help. Write as students type: one short message at a time, in your own words, not everything at once. Answer what "
    "you are asked. Do not solve the problem."
)
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_ACT_WORDS = {
    "greet": re.compile(r"\b(hi|hello|hey)\b", re.I),
    "thank": re.compile(r"\b(thanks|thank you)\b", re.I),
    "agree": re.compile(r"\b(yes|yeah|yep|ok|okay|right|correct|i see|got it|makes sense)\b", re.I),
    "refuse": re.compile(r"\b(no|nope|wrong|incorrect)\b", re.I),
    "stuck": re.compile(r"\b(don'?t (know|understand|get)|not sure|confus\w*|help|stuck|no idea|how do i)\b", re.I),
}


class MathChat:
    """The task; see the module's docstring.

    Raises:
        UserError: the problems are missing or unusable.
    """

    @dataclass(frozen=True)
    class Config(ProblemSource):
        max_policy_turns: Positive = 6
        """Policy turns, the greeting not counted."""
        word_cost: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
        """Reward that each word of the policy costs."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        self.name = "math_chat"
        check_settings(config, "MathChat")
        self.max_policy_turns = config.max_policy_turns
        problems, self.problems = read_problems(Path(config.path).expanduser())
        self._problems: dict[Split, list[MathProblem]] = split_problems(problems, config)

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """The first ``count`` problems of ``split``."""
        if population != "same":
            raise UserError(f"MathChat: unknown population '{population}'; there is one, 'same'")
        problems = self._problems[split]
        if count > len(problems):
            raise UserError(f"MathChat: {count} scenarios requested of the {split} split, which has {len(problems)}")
        return [scenario_of(problem, split) for problem in problems[:count]]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        """``answered``, once the policy has given a final answer."""
        last = turns[-1]
        return ANSWERED if last.side is Side.POLICY and answer_of(last.text) is not None else None

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        """Whether the final answer is right, less the words. Of a log without the problem's answer: nothing."""
        expected, answer = scenario.goal.get("answer"), answer_of(turns[-1].text) if ending == ANSWERED else None
        right = bool(expected) and answer is not None and is_right(answer, str(expected))
        words = sum(len(turn.text.split()) for turn in turns[1:] if turn.side is Side.POLICY)
        reward = max(0.0, 1.0 - self.config.word_cost * words) if right else 0.0
        return Outcome(reward=reward, success=right, details={"answer": answer, "policy_words": words})

    def reward_range(self) -> tuple[float, float]:
        """From no right answer to one that cost nothing."""
        return 0.0, 1.0

    def metrics(self, scenario: Scenario, turns: Sequence[Turn], outcome: Outcome) -> Mapping[str, float]:
        """``answered`` (share with a final answer), and the ``policy_words`` of a dialogue."""
        return {
            "answered": float(outcome.details["answer"] is not None),
            "policy_words": float(outcome.details["policy_words"]),
        }

    def contradicts_goal(self, scenario: Scenario, turns: Sequence[Turn]) -> bool | None:
        """Whether a number of the user's first message about the problem is none of the problem's; None: it names none.
        Later it may name what it has worked out."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        numbers = _numbers(spoken[0]) if len(spoken) == 1 else set()
        return not numbers <= _numbers(_question(scenario)) if numbers and _question(scenario) else None

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        """``final_answer``; by keywords ``greet``, ``thank``, ``agree``, ``refuse``, ``stuck``; ``number``, ``formula``
        and ``ask``; ``other`` where none is found."""
        text = turns[index].text
        acts = ["final_answer"] if turns[index].side is Side.POLICY and answer_of(text) is not None else []
        acts += [act for act, words in _ACT_WORDS.items() if words.search(text)]
        acts += ["number"] if _NUMBER.search(text) else []
        acts += ["formula"] if re.search(r"[=^\\]|\d\s*[-+*/]\s*\d", text) else []
        acts += ["ask"] if "?" in text else []
        return tuple(acts) or ("other",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        """``words_per_turn``, ``first_turn_words``, ``questions`` (share of its turns that ask), ``bare_numbers`` (that
        are nothing but a number); and where the problem is known ``first_turn_disclosure``, the share of its numbers
        that the first turn tells."""
        spoken = [turn.text for turn in turns if turn.side is Side.USER]
        count = max(1, len(spoken))
        numbers = _numbers(_question(scenario))
        return {
            "words_per_turn": sum(len(text.split()) for text in spoken) / count,
            "first_turn_words": float(len(spoken[0].split())) if spoken else 0.0,
            "questions": sum("?" in text for text in spoken) / count,
            "bare_numbers": sum(bool(_NUMBER.fullmatch(text.strip().strip("."))) for text in spoken) / count,
        } | ({"first_turn_disclosure": len(_numbers(spoken[0]) & numbers) / len(numbers)} if numbers and spoken else {})


def scenario_of(problem: MathProblem, split: Split) -> Scenario:
    """The scenario of a problem. The answer is in the goal, which neither side's model sees."""
    return Scenario(
        id=problem.id, split=split, policy_instructions=POLICY_INSTRUCTIONS,
        user_instructions=USER_INSTRUCTIONS.format(question=problem.question), greeting=GREETING,
        goal={"problem": problem.question, "answer": problem.answer},
    )  # fmt: skip


def _question(scenario: Scenario) -> str:
    return str(scenario.goal.get("problem", ""))


def _numbers(text: str) -> set[str]:
    return {number.replace(",", "") for number in _NUMBER.findall(text)}
