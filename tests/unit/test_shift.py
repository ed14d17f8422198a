"""Estimators of simulator-induced shift against cases whose answer is known."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.replies import exact_replies
from calibrated_rl.shift.base import MatchedReplies
from calibrated_rl.shift.bounds import per_turn_reward_bound, terminal_reward_bound
from calibrated_rl.shift.probabilities.exact import exact_shift, reply_log_prob
from calibrated_rl.shift.probabilities.likelihood import human_turn_likelihood
from calibrated_rl.shift.profile import behaviour_profile
from calibrated_rl.shift.sources import _task_of
from calibrated_rl.shift.two_sample.classifier import TwoSampleTest, wilson_interval
from calibrated_rl.statistics.intervals import Interval

Reply = Callable[[np.random.Generator, str, int], str]
QUESTIONS = ("which day ?", "what time ?", "how many people ?", "any name ?")
ANSWERS = {
    "which day ?": "monday",
    "what time ?": "seven pm",
    "how many people ?": "four",
    "any name ?": "ann",
}


def policy(text: str) -> Turn:
    return Turn(side=Side.POLICY, text=text, source=Source.POLICY)


def user(text: str) -> Turn:
    return Turn(side=Side.USER, text=text, source=Source.HUMAN)


def people(rng: np.random.Generator, question: str, turn: int) -> str:
    """Answers what was asked, with a filler that varies."""
    filler = rng.choice(["", "well", "um", "please", "i think"])
    return f"{filler} {ANSWERS[question]}".strip()


def anyhow(rng: np.random.Generator, question: str, turn: int) -> str:
    """The same replies, equally often, but to any question: differs only conditionally."""
    return people(rng, str(rng.choice(QUESTIONS)), turn)


def matched(human: Reply, simulator: Reply, dialogues: int, turns: int = 4, seed: int = 0) -> MatchedReplies:
    rng = np.random.default_rng(seed)
    rows = []
    for d in range(dialogues):
        history = [policy("hello")]
        for t in range(1, turns + 1):
            question = str(rng.choice(QUESTIONS))
            history = [*history, policy(question)] if t > 1 else [policy(f"hello {question}")]
            h, s = human(rng, question, t), simulator(rng, question, t)
            rows.append((history, h, s, t, f"d{d}"))
            history = [*history, user(h)]
    histories, said, simulated, index, names = map(list, zip(*rows, strict=True))
    return MatchedReplies(histories=histories, human=said, simulator=simulated, turn=index, dialogue=names)


def words_test(**changes: object) -> TwoSampleTest:
    return TwoSampleTest(TwoSampleTest.Config(**{"null_halvings": 0} | changes))  # type: ignore[arg-type]


def test_identical_distributions_cannot_be_told_apart() -> None:
    results = [words_test().measure(matched(people, people, 100, seed=s)) for s in range(5)]
    assert sum(r.accuracy.low <= 0.5 <= r.accuracy.high for r in results) >= 4
    assert np.mean([r.auc.value for r in results]) == pytest.approx(0.5, abs=0.05)
    assert [r.tv.low for r in results].count(0.0) >= 4


def test_disjoint_replies_are_told_apart_at_once() -> None:
    result = words_test().measure(matched(people, lambda *_: "yes that sounds great , thank you !", 60))
    assert result.accuracy.value == 1 and result.accuracy.low > 0.9
    assert result.tv.low > 0.8 and result.auc.value == 1
    assert [t.turn for t in result.tv.by_turn] == [1, 2, 3, 4]
    assert all(t.count == 60 and t.low > 0.6 for t in result.tv.by_turn)


def test_a_difference_that_is_only_conditional_is_seen() -> None:
    # A person's answer fits the question always, the other's in 1 of 4: TV = 3/4, best accuracy = 7/8.
    result = words_test().measure(matched(people, anyhow, 200))
    assert result.accuracy.value == pytest.approx(7 / 8, abs=0.04)
    assert 0.6 < result.tv.low < 0.75


def test_shift_is_found_at_the_turn_where_it_is() -> None:
    def late(rng: np.random.Generator, question: str, turn: int) -> str:
        return people(rng, question, turn) if turn < 3 else "goodbye"

    result = words_test().measure(matched(people, late, 150))
    by_turn = {t.turn: t for t in result.tv.by_turn}
    assert by_turn[1].low == 0 and by_turn[2].low == 0
    assert by_turn[3].low > 0.8 and by_turn[4].low > 0.8


def test_shuffled_labels_lie_within_the_null_band() -> None:
    real = matched(people, anyhow, 100)
    rng = np.random.default_rng(1)
    swap = rng.random(len(real)) < 0.5
    pairs = list(zip(real.human, real.simulator, swap, strict=True))
    shuffled = MatchedReplies(
        histories=real.histories,
        human=[s if x else h for h, s, x in pairs],
        simulator=[h if x else s for h, s, x in pairs],
        turn=real.turn,
        dialogue=real.dialogue,
    )
    band = words_test(null_halvings=3).null_band(real)
    assert band[0] < 0.5 < band[1]
    assert band[0] <= words_test().measure(shuffled, null_band=band).accuracy.value <= band[1]
    found = words_test().measure(real, null_band=band)
    assert found.accuracy.value > band[1] and (found.accuracy.null_low, found.accuracy.null_high) == band


def test_acts_see_what_is_said_and_not_how() -> None:
    def acts_of(replies: MatchedReplies, which: str) -> list[tuple[str, ...]]:
        return [tuple(a for a in ANSWERS.values() if a in text.lower()) for text in getattr(replies, which)]

    def shouting(rng: np.random.Generator, question: str, turn: int) -> str:
        return people(rng, question, turn).upper()

    for simulator, visible in ((shouting, False), (anyhow, True)):
        plain = matched(people, simulator, 100)
        data = MatchedReplies(
            histories=plain.histories,
            human=plain.human,
            simulator=plain.simulator,
            turn=plain.turn,
            dialogue=plain.dialogue,
            human_acts=acts_of(plain, "human"),
            simulator_acts=acts_of(plain, "simulator"),
        )
        assert words_test().measure(data).tv.low > 0.5
        assert (words_test(inputs="acts").measure(data).tv.low > 0.5) is visible
    with pytest.raises(UserError, match="without dialogue acts"):
        words_test(inputs="acts").measure(plain)


def test_identical_replies_give_exactly_chance() -> None:
    fixed = matched(people, people, 20)
    same = MatchedReplies(
        histories=fixed.histories,
        human=fixed.human,
        simulator=fixed.human,
        turn=fixed.turn,
        dialogue=fixed.dialogue,
    )
    result = words_test().measure(same)
    assert result.accuracy.value == 0.5 and result.tv.low == 0 and result.auc.value == pytest.approx(0.5)


@pytest.mark.parametrize("dialogues", [0, 1, 5])
def test_too_few_dialogues_are_refused(dialogues: int) -> None:
    few = MatchedReplies(histories=[], human=[], simulator=[], turn=[], dialogue=[])
    with pytest.raises(UserError, match="at least 6 human dialogues"):
        words_test().measure(matched(people, anyhow, dialogues) if dialogues else few)


def test_hostile_replies_do_not_break_it() -> None:
    odd = ["", " ", "\x00", "\ud800", "\U0001f600" * 50, "word " * 3000]

    def strange(rng: np.random.Generator, question: str, turn: int) -> str:
        return odd[int(rng.integers(len(odd)))]

    assert words_test().measure(matched(people, strange, 20)).accuracy.value > 0.8


@pytest.mark.slow
def test_same_seed_same_result_and_a_thousand_dialogues_are_quick() -> None:
    data = matched(people, anyhow, 1000)
    start = time.process_time()
    first = words_test().measure(data)
    assert time.process_time() - start < 10
    small = matched(people, anyhow, 40)
    assert words_test().measure(small) == words_test().measure(small)
    assert first.accuracy.high - first.accuracy.low < 0.05


def test_wilson_interval_by_hand() -> None:
    # 8 of 10 independent replies: t(9) = 2.2622; variance 10/9 * 1.6/100 = 0.01778, effective n = 9.
    share, low, high = wilson_interval(np.array([1.0] * 8 + [0.0] * 2), np.arange(10))
    z2, n = 2.262157**2, 9
    middle = (0.8 + z2 / 18) / (1 + z2 / n)
    half = math.sqrt(z2 * (0.16 / n + z2 / 324)) / (1 + z2 / n)
    assert (share, low, high) == pytest.approx((0.8, middle - half, middle + half), abs=1e-5)
    assert wilson_interval(np.ones(10), np.zeros(10, int)) == (1.0, 0.0, 1.0)
    clustered = wilson_interval(np.repeat([1.0, 0.0], 50), np.repeat(np.arange(10), 10))
    independent = wilson_interval(np.repeat([1.0, 0.0], 50), np.arange(100))
    assert clustered[2] - clustered[1] > 2 * (independent[2] - independent[1])


def test_exact_shift_by_hand() -> None:
    # Human (1/2, 1/2), simulator (3/4, 1/4): TV = 1/4, KL = 1/2 log(2/3) + 1/2 log 2 = 0.14384.
    p, q = np.log([0.5, 0.5]), np.log([0.75, 0.25])
    result = exact_shift(np.tile(p, 3), np.tile(q, 3), turn=[1, 1, 2, 2, 3, 3], dialogue=list("ababab"))
    assert result["tv"].value == pytest.approx(0.25) and result["kl"].value == pytest.approx(0.143841, abs=1e-6)
    assert [t.value for t in result["tv"].by_turn] == pytest.approx([0.25] * 3)
    same = exact_shift(p, p, turn=[1, 1], dialogue=["a", "b"])
    assert same["tv"].value == 0 and same["kl"].value == 0


@pytest.mark.slow
def test_exact_shift_intervals_cover_the_truth() -> None:
    human, simulator = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])  # TV = 0.3
    names, hits = [f"d{i // 3}" for i in range(300)], 0
    for seed in range(100):
        drawn = np.random.default_rng(seed).choice(3, p=human, size=300)
        log_p, log_q = np.log(human)[drawn], np.log(simulator)[drawn]
        tv = exact_shift(log_p, log_q, turn=np.ones(300), dialogue=names)["tv"]
        hits += tv.low <= 0.3 <= tv.high
    assert 90 <= hits <= 99


def test_exact_shift_with_impossible_replies() -> None:
    result = exact_shift([-1.0, -1.0], [-math.inf, -1.0], turn=[1, 1], dialogue=["a", "b"])
    assert result["tv"].value == 0.5 and "1 of 2 replies" in result["kl"].notes[0]
    assert math.isinf(exact_shift([-1.0], [-math.inf], turn=[1], dialogue=["a"])["kl"].value)
    with pytest.raises(ValueError, match="probability 0 under the human"):
        exact_shift([-math.inf], [-1.0], turn=[1], dialogue=["a"])
    with pytest.raises(UserError, match="no human turns"):
        exact_shift([], [], turn=[], dialogue=[])


NEXT = {"a": 0.45, "b": 0.3, "": 0.25}
"""What a simulator says next, whatever it has said; nothing: its end of turn."""
SAID = {"": 0.1, "a": 0.2, "ba": 0.25, "ab": 0.15, "aba": 0.2, "bbaa": 0.1}
"""What people say: letters are tokens."""


def cut_off(most: int) -> dict[str, float]:
    """The simulator's replies when it is cut off after ``most`` tokens, by playing all of its turns."""
    said: dict[str, float] = {}
    going_on = {"": 1.0}
    for _ in range(most):
        longer: dict[str, float] = {}
        for text, chance in going_on.items():
            said[text] = said.get(text, 0.0) + chance * NEXT[""]
            longer |= {text + token: chance * NEXT[token] for token in "ab"}
        going_on = longer
    return {text: said.get(text, 0.0) + going_on.get(text, 0.0) for text in said.keys() | going_on.keys()}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_replies_that_are_too_long_for_the_simulator_are_out_of_its_reach(most: int) -> None:
    """The exact shift from people's replies is the total variation of what is said, wherever turns are cut off."""
    simulator = cut_off(most)
    assert sum(simulator.values()) == pytest.approx(1.0)
    expected = sum(max(0.0, chance - simulator.get(text, 0.0)) for text, chance in SAID.items())
    log_q = [reply_log_prob([math.log(NEXT[token]) for token in (*text, "")], most) for text in SAID]
    assert [math.exp(value) for value in log_q] == pytest.approx([simulator.get(text, 0.0) for text in SAID])
    # Each reply as often as people say it: 20 replies in all.
    counts = [round(20 * chance) for chance in SAID.values()]
    replies = [np.repeat(values, counts) for values in (np.log(list(SAID.values())), log_q)]
    found = exact_shift(*replies, turn=np.ones(20), dialogue=[str(i) for i in range(20)])
    assert found["tv"].value == pytest.approx(expected)


def test_exact_replies_know_where_the_simulator_is_cut_off() -> None:
    """Three tokens and an end of turn, all as likely as not; people always say just that."""

    class Human:
        def log_prob(self, scenario: Any, turns: Any, reply: str) -> float:
            return 0.0

    said = spoken("one", "a b c")
    view = TokenSequence(
        ids=np.arange(6, dtype=np.int32), mask=np.array([0, 0, 1, 1, 1, 1], np.bool_),
        logprobs=np.full(6, np.nan, np.float32), versions=np.full(6, -1, np.int32), turns=np.array([0, 0, 1, 1, 1, 1]),
    )  # fmt: skip
    log_probs = np.array([np.nan, np.nan, *[math.log(0.5)] * 4], np.float32)
    found = [exact_replies(Human(), [said], [view], [log_probs], most).simulator[0] for most in (4, 3, 2)]  # type: ignore[arg-type]
    assert found == pytest.approx([math.log(1 / 16), math.log(1 / 8), -math.inf])


def spoken(name: str, *texts: str, ending: str = "closed", tokens: TokenSequence | None = None) -> Dialogue:
    turns = [policy("hello")]
    for text in texts:
        turns += [user(text), policy("go on")]
    return Dialogue(
        id=name,
        task="t",
        scenario=Scenario(
            id=name, split=Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="hello"
        ),
        turns=tuple(turns),
        ending=ending,
        outcome=None,
        kind="log",
        user_tokens=tokens,
    )


def test_likelihood_by_hand() -> None:
    nan = math.nan
    turns = np.array([-1, 1, 1, 2, 3, 3, 3], np.int32)
    values = np.array([nan, -1, -2, nan, -1, -1, -4], np.float32)
    tokens = TokenSequence(
        ids=np.zeros(7, np.int32),
        mask=~np.isnan(values),
        logprobs=values,
        versions=np.zeros(7, np.int32),
        turns=turns,
    )
    result = human_turn_likelihood([spoken("a", "h\u00e9", "abcdef", tokens=tokens)], [values])
    assert result["nll_per_turn"].value == pytest.approx((3 + 6) / 2)
    assert result["nll_per_token"].value == pytest.approx(9 / 5)
    assert result["nll_per_byte"].value == pytest.approx(9 / 9)
    assert [(t.turn, t.value) for t in result["nll_per_turn"].by_turn] == [(1, 3.0), (2, 6.0)]
    with pytest.raises(UserError, match="no human turns"):
        human_turn_likelihood([], [])


def test_bounds_by_hand() -> None:
    assert per_turn_reward_bound(2.0, delta=[0.1, 0.2, 0.3]) == pytest.approx(2 * (0.3 + 0.4 + 0.3))
    assert terminal_reward_bound(2.0, delta=[0.1, 0.2, 0.3]) == pytest.approx(1.2)
    both = {"epsilon": [0.1, 0.1], "delta": [0.2, 0.0]}
    assert per_turn_reward_bound(1.0, **both) == pytest.approx(2 * 0.3 + 0.1)
    assert terminal_reward_bound(1.0, **both) == pytest.approx(0.4)
    assert terminal_reward_bound(1.0) == 0
    # Constant shift: quadratic in the horizon for per-turn rewards, linear for a terminal one.
    assert per_turn_reward_bound(1, delta=[0.1] * 20) == pytest.approx(21)
    assert terminal_reward_bound(1, delta=[0.1] * 20) == pytest.approx(2)
    with pytest.raises(AssertionError):
        terminal_reward_bound(1.0, delta=[1.5])


def test_profile_by_hand() -> None:
    class Task:
        def profile(self, scenario: Scenario, turns: tuple[Turn, ...]) -> dict[str, float]:
            return {"goal_kept": 0.5} | ({"rare": 1.0} if scenario.id == "a" else {})

    dialogues = [spoken("a", "one two three four", "yes"), spoken("b", "no", ending="left")]
    profile = behaviour_profile(dialogues, Task())  # type: ignore[arg-type]
    means = {name: interval.mean for name, interval in profile.items()}
    assert means == pytest.approx(
        {
            "user_turns": 1.5,
            "leaving": 0.5,
            "turn_words": 2.0,
            "short_turns": 2 / 3,
            "goal_kept": 0.5,
            "rare": 1.0,
        }
    )
    assert profile["goal_kept"] == Interval(0.5, 0.5, 0.5)
    assert behaviour_profile([], Task()) == {}  # type: ignore[arg-type]


def test_a_task_that_cannot_be_made_is_told_and_a_folder_alone_is_no_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replay = tmp_path / "replay" / "logs"
    replay.mkdir(parents=True)
    assert _task_of(replay) is None and not caplog.messages
    (tmp_path / "config.yaml").write_text("task: gone.py:Task\n")
    assert _task_of(replay) is None
    (told,) = caplog.messages
    assert "without dialogue acts" in told and "gone.py" in told
