"""The FrontDesk world: exact probabilities, keyed randomness, parsing, rewards, logs.

``python -m tests.unit.test_front_desk`` prints how the logged policy, its form, the expert, the best and the
instant policy fare with people.
"""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.human import FrontDeskHuman
from calibrated_rl.examples.front_desk.task import FrontDesk, keyed_random
from calibrated_rl.examples.front_desk.words import SLOPPY, SLOT_OF, SLOTS, TIDY, Goal, canonical, goal_of, heard
from calibrated_rl.logs.base import LogReader
from calibrated_rl.logs.scripted import ScriptedLogs
from calibrated_rl.rollout.conversation import greeting
from calibrated_rl.tasks.base import ScriptedHuman, ScriptedTask, count_policy_turns

TASK = FrontDesk()
HUMAN = FrontDeskHuman()
Policy = Callable[[Scenario, Sequence[Turn]], str]

GOAL = Goal((("day", "friday"), ("time", "seven"), ("people", "two")), 2, "time", "six")
SCENARIO = Scenario(
    id="calibration-000000",
    split=Split.CALIBRATION,
    policy_instructions="book : day time people",
    user_instructions="",
    greeting="hello",
    goal=GOAL.as_json(),
)


def expert_turn(scenario: Scenario, turns: Sequence[Turn]) -> str:
    """Asks for what is missing, in order, then books."""
    known, slots = heard(turns), goal_of(scenario).slots
    missing = [slot for slot in slots if slot not in known]
    return f"which {missing[0]} ?" if missing else f"booked {' '.join(known[slot] for slot in slots)}"


def form_turn(scenario: Scenario, turns: Sequence[Turn]) -> str:
    """Goes through the form, question by question, also for what is not needed, then books: the habit without slips."""
    known, slots = heard(turns), goal_of(scenario).slots
    asked = {word for turn in turns if turn.side is Side.POLICY for word in turn.text.split()}
    if all(slot in known for slot in slots):
        return expert_turn(scenario, turns)
    return f"which {next(s for s in SLOTS if (s not in known if s in slots else s not in asked))} ?"


def best_turn(scenario: Scenario, turns: Sequence[Turn]) -> str:
    """Asks for what is missing, two slots at once, then books."""
    known, slots = heard(turns), goal_of(scenario).slots
    missing = [slot for slot in slots if slot not in known]
    return f"which {' '.join(missing[:2])} ?" if missing else f"booked {' '.join(known[slot] for slot in slots)}"


def instant_turn(scenario: Scenario, turns: Sequence[Turn]) -> str:
    """Books at once and guesses what was not said."""
    known, rng = heard(turns), keyed_random("instant", scenario.id)
    return "booked " + " ".join(known.get(s) or str(rng.choice(SLOTS[s])) for s in goal_of(scenario).slots)


def logged_turn(scenario: Scenario, turns: Sequence[Turn]) -> str:
    return TASK.logged_turn(scenario, turns, 0)


def dialogue(*texts: str) -> list[Turn]:
    """The greeting and then ``texts``, the person first."""
    sides = itertools.cycle((Side.USER, Side.POLICY))
    turns = [Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, texts, strict=False)]
    return [greeting(SCENARIO), *turns]


def play(human: FrontDeskHuman, policy: Policy, scenario: Scenario) -> tuple[list[Turn], str, Outcome]:
    turns, ending = [greeting(scenario)], None
    while ending is None:
        if turns[-1].side is Side.POLICY:
            turns.append(Turn(side=Side.USER, text=human.reply(scenario, turns), source=Source.SCRIPTED))
        else:
            turns.append(Turn(side=Side.POLICY, text=policy(scenario, turns), source=Source.SCRIPTED))
        ending = TASK.ending(scenario, turns)
        if ending is None and turns[-1].side is Side.POLICY and count_policy_turns(turns) >= TASK.max_policy_turns:
            ending = "max_turns"
    return turns, ending, TASK.outcome(scenario, turns, ending)


def results(cooperativeness: float, population: str, policy: Policy, count: int) -> dict[str, float]:
    human = FrontDeskHuman(FrontDeskHuman.Config(cooperativeness=cooperativeness))
    played = [play(human, policy, s) for s in TASK.scenarios(Split.HELD_OUT, count, population)]
    return {
        "reward": float(np.mean([o.reward for _, _, o in played])),
        "success": float(np.mean([o.success for _, _, o in played])),
        "turns": float(np.mean([count_policy_turns(t) for t, _, _ in played])),
        "left": float(np.mean([ending == "left" for _, ending, _ in played])),
        "words": float(np.mean([sum(len(x.text.split()) for x in t) for t, _, _ in played])),
    }


HISTORIES = [
    dialogue(),
    dialogue("table friday", "which time ?"),
    dialogue("tabel fri pls", "which day ?", "i sed fri", "which time ?"),
    dialogue("table", "which time ?", "seven please", "so friday seven ?"),
    dialogue("table please", "which time ?", "sry make it 6", "so friday seven two ?"),
    dialogue("table", "which meal ?", "any", "wibble ?"),
    dialogue("table", "so friday six ?", "no 7", "so friday six ?"),
    dialogue("table", "booked friday"),
    dialogue("whatever a simulator says", "which day ?", "FRI!", "which people ?"),
]


@pytest.mark.parametrize("turns", HISTORIES)
@pytest.mark.parametrize("cooperativeness", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("population", ["same", "shifted"])
def test_probabilities_sum_to_one(turns: list[Turn], cooperativeness: float, population: str) -> None:
    human = FrontDeskHuman(FrontDeskHuman.Config(cooperativeness=cooperativeness))
    scenario = _with(population)
    support = human.support(scenario, turns)
    assert len(set(support)) == len(support)
    assert math.fsum(math.exp(human.log_prob(scenario, turns, text)) for text in support) == pytest.approx(
        1.0, abs=1e-12
    )
    assert human.log_prob(scenario, turns, "no such words") == -math.inf
    assert math.fsum(human.posterior(scenario, turns)) == pytest.approx(1.0)


def _with(population: str) -> Scenario:
    return dataclasses.replace(SCENARIO, population=population)


@pytest.mark.parametrize("turns", HISTORIES[:5])
def test_samples_follow_log_prob(turns: list[Turn]) -> None:
    count = 4000
    seen = Counter(HUMAN.sample(SCENARIO, turns, seed) for seed in range(count))
    support = HUMAN.support(SCENARIO, turns)
    assert set(seen) <= set(support)
    for text in support:
        p = math.exp(HUMAN.log_prob(SCENARIO, turns, text))
        assert abs(seen[text] / count - p) < 4.5 * math.sqrt(p * (1 - p) / count) + 1e-3, text


def test_replies_over_many_people_follow_log_prob() -> None:
    """Integrated over individuals, keyed replies have the probabilities of the population."""
    people = [dataclasses.replace(SCENARIO, id=f"x-{i}") for i in range(4000)]
    seen = Counter(HUMAN.reply(person, dialogue()) for person in people)
    for text in HUMAN.support(SCENARIO, dialogue()):
        p = math.exp(HUMAN.log_prob(SCENARIO, dialogue(), text))
        assert abs(seen[text] / len(people) - p) < 4.5 * math.sqrt(p * (1 - p) / len(people)) + 1e-3, text


def test_log_prob_by_hand() -> None:
    """One type only: terse, patient, tidy; asked for the time before the change is due."""
    human = FrontDeskHuman(
        FrontDeskHuman.Config(talkative_share=0.0, patient_share=1.0, tidy_share=1.0, misspeak=0.1, leave_base=0.02)
    )
    goal = Goal(GOAL.first)
    scenario = dataclasses.replace(SCENARIO, goal=goal.as_json())
    turns = dialogue("table friday", "which time ?")
    stay, right = 1 - 0.5 * 0.02, 0.9

    def log_prob(scenario: Scenario, turns: list[Turn], reply: str) -> float:
        return human.log_prob(scenario, turns, reply)

    assert log_prob(scenario, turns, "seven") == pytest.approx(math.log(stay * right * 0.8 * 0.9 * 0.97))
    assert log_prob(scenario, turns, "7 2 pls") == pytest.approx(math.log(stay * right * 0.2 * 0.1 * 0.03**3))
    assert log_prob(scenario, turns, "forget it bye") == pytest.approx(math.log(0.01))
    # One of the four other values of a slot, in one of the places where a value is told.
    assert log_prob(scenario, turns, "nine") == pytest.approx(math.log(stay * 0.1 / 4 * 0.8 * 0.9 * 0.97))
    assert log_prob(scenario, turns, "seven five") == pytest.approx(math.log(stay * 0.1 / 2 / 4 * 0.2 * 0.9 * 0.97**2))
    assert log_prob(scenario, turns, "nine five") == -math.inf, "not both are wrong"
    # With the change due and the slot untold the new value is spoken with probability utter_change; the wrong values
    # are three then, since the right one of before is none of them.
    assert log_prob(SCENARIO, turns, "six") == pytest.approx(math.log(stay * 0.85 * right * 0.8 * 0.9 * 0.97))


def test_two_questions_at_once_by_hand() -> None:
    human = FrontDeskHuman(
        FrontDeskHuman.Config(
            talkative_share=0.0, patient_share=1.0, tidy_share=1.0, misspeak=0.0, leave_base=0.02, leave_bad=0.12,
            leave_late=0.04, free_turns=2,
        )
    )  # fmt: skip
    scenario = dataclasses.replace(SCENARIO, goal=Goal(GOAL.first).as_json())
    turns = dialogue("table", "which day time ?")
    stay = (1 - 0.5 * 0.02) * 0.9
    both, one = 0.75, 0.25
    assert human.log_prob(scenario, turns, "friday seven") == pytest.approx(
        math.log(stay * 0.97**2 * (both * 0.8 + one * 0.2 / 2))  # or of the one asked, and of two more by itself
    )
    assert human.log_prob(scenario, turns, "friday") == pytest.approx(math.log(stay * 0.97 * one * 0.8))
    assert human.log_prob(scenario, turns, "seven") == -math.inf, "the first one is answered"
    told = dialogue("table friday", "which day time ?")
    assert human.log_prob(scenario, told, "seven") == pytest.approx(math.log(stay * 0.97 * 0.8))
    many = dialogue("table", "which day time people ?")
    assert math.exp(human.log_prob(scenario, many, "what")) > 0.8
    last = dialogue("table", "which day time people ?", "what", "which meal ?", "any", "one moment")
    hazard = 0.5 * (0.02 + 0.12 * 3 + 0.04)  # three bad ones, one turn beyond the free ones
    assert human.log_prob(scenario, last, "forget it bye") == pytest.approx(math.log(hazard))


def test_posterior_is_bayes() -> None:
    """A sloppy spelling makes a sloppy typist likelier by the ratio of the typo probabilities."""
    posterior = HUMAN.posterior(SCENARIO, dialogue("tabel"))
    sloppy = sum(p for p, z in zip(posterior, HUMAN.types, strict=True) if z.name.endswith("sloppy"))
    assert sloppy == pytest.approx(0.35 / (0.35 + 0.03))
    # An impossible reply restarts the posterior from the prior.
    assert HUMAN.posterior(SCENARIO, dialogue("tabel", "which day ?", "qwerty")) == HUMAN.priors["same"]


def test_replies_are_keyed_by_scenario_and_turn() -> None:
    turns = dialogue("table", "which day ?")
    assert HUMAN.reply(SCENARIO, turns) == FrontDeskHuman().reply(SCENARIO, turns)
    scenarios = TASK.scenarios(Split.MONITOR, 60)
    first = [HUMAN.reply(s, dialogue()) for s in scenarios]
    assert first == [FrontDeskHuman().reply(s, dialogue()) for s in reversed(scenarios)][::-1]
    other = FrontDeskHuman(FrontDeskHuman.Config(seed=1))
    assert first != [other.reply(s, dialogue()) for s in scenarios]
    # A pinned value: the keyed generator must not depend on the process or the machine.
    assert int(keyed_random("a", 1).integers(1_000_000)) == 220_969


def test_splits_are_disjoint_and_stable() -> None:
    ids = [s.id for p in ("same", "shifted") for split in Split for s in TASK.scenarios(split, 50, p)]
    assert len(set(ids)) == len(ids) == 400
    assert "calibration-000017" in ids
    assert TASK.scenarios(Split.TUNING, 30)[:10] == TASK.scenarios(Split.TUNING, 10)
    scenarios = TASK.scenarios(Split.CALIBRATION, 1000)
    assert {len(goal_of(s).slots) for s in scenarios} == {3, 4, 5}
    changes = sum(bool(goal_of(s).change_turn) for s in scenarios)
    assert 150 < changes < 250
    with pytest.raises(UserError, match="population"):
        TASK.scenarios(Split.TUNING, 1, "martian")


def test_words_are_unambiguous() -> None:
    assert len(TIDY) == len(SLOPPY), "two words share a sloppy spelling"
    assert not set(TIDY) & (set(SLOPPY) | set(SLOT_OF) | set(SLOTS))
    assert len(SLOT_OF) == 25
    for word, sloppy in SLOPPY.items():
        assert canonical(f"x {sloppy}") == ("x", word)


def test_user_instructions_tell_first_goal_and_change() -> None:
    scenario = next(s for s in TASK.scenarios(Split.TUNING, 100) if goal_of(s).change_turn)
    goal = goal_of(scenario)
    assert scenario.user_instructions.startswith("want : ")
    assert scenario.user_instructions.endswith(f"turn {goal.change_turn} {goal.change_slot} {goal.change_value}")
    assert goal.change_value not in scenario.policy_instructions
    assert Goal.from_json(scenario.goal) == goal


@pytest.mark.parametrize(
    ("texts", "ending", "success", "reward"),
    [
        (("table", "booked friday seven two"), "closed", True, 0.98),
        (("table", "booked two fri 7"), "closed", True, 0.98),
        (("table", "booked friday six two"), "closed", False, 0.0),
        (("table", "booked friday seven two fish"), "closed", False, 0.0),
        (("table", "booked friday seven two wibble"), "closed", False, 0.0),
        (("table", "booked"), "closed", False, 0.0),
        (("table", "which day ?", "sorry make it six", "booked friday six two"), "closed", True, 0.96),
        (("table", "which day ?", "sry make it 6", "booked friday seven two"), "closed", False, 0.0),
        (("table", "which day ?", "forget it bye"), "left", False, 0.0),
        (("table", "which day ?", "forget it bye", "booked friday seven two"), "left", False, 0.0),
        (("table", "which day ?", "friday", "which time ?"), "max_turns", False, 0.0),
    ],
)
def test_outcomes(texts: tuple[str, ...], ending: str, success: bool, reward: float) -> None:
    turns = dialogue(*texts)
    assert TASK.ending(SCENARIO, turns) == (None if ending == "max_turns" else ending)
    outcome = TASK.outcome(SCENARIO, turns, ending)
    assert outcome.success is success
    assert outcome.reward == pytest.approx(reward)


def test_a_change_said_after_the_booking_does_not_count() -> None:
    turns = dialogue("table", "booked friday seven two", "sorry make it six")
    assert TASK.outcome(SCENARIO, turns, "closed").success


def test_bad_turns_make_people_leave() -> None:
    polite = dialogue("table", "which day ?", "friday", "which time ?")
    rude = dialogue("table", "buy gold", "what", "buy gold")
    leave = [math.exp(HUMAN.log_prob(SCENARIO, t, "forget it bye")) for t in (polite, rude)]
    assert leave[0] < 0.04 and leave[1] > 0.15
    assert HUMAN.log_prob(SCENARIO, rude, "what") > -math.inf


def test_cooperative_people_agree_with_everything() -> None:
    yes = FrontDeskHuman(FrontDeskHuman.Config(cooperativeness=1.0))
    assert set(map(canonical, yes.support(SCENARIO, dialogue()))) == {
        ("table", "friday", "seven", "two"), ("table", "friday", "seven", "two", "please")
    }  # fmt: skip
    wrong = dialogue("table friday seven two", "so monday nine five ?")
    assert yes.support(SCENARIO, wrong) == ["yes"]


def test_acts_and_profile() -> None:
    turns = dialogue("table fri", "so monday ?", "yep", "which time ?", "sorry make it six", "booked friday six two")
    acts = [TASK.acts(SCENARIO, turns, i) for i in range(len(turns))]
    assert acts == [
        ("greet",), ("want", "inform:day"), ("read_back:day",), ("confirm",), ("ask:time",), ("change:time",),
        ("book:day", "book:time", "book:people"),
    ]  # fmt: skip
    profile = TASK.profile(SCENARIO, turns)
    assert profile["goal_kept"] == 1.0
    assert profile["first_turn_disclosure"] == pytest.approx(1 / 3)
    assert profile["words_per_turn"] == pytest.approx((2 + 1 + 4) / 3)
    assert profile["wrong_confirmed"] == 1.0 and profile["change_uttered"] == 1.0 and profile["left"] == 0.0
    assert TASK.profile(SCENARIO, dialogue("table monday six"))["goal_kept"] == 0.0


text_lists = st.lists(
    st.one_of(st.text(max_size=30), st.lists(st.sampled_from(
        ["which", "day", "so", "booked", "friday", "six", "2", "?", "forget", "it", "sorry", "make", "\x00"]
    ), max_size=6).map(" ".join)),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(text_lists, st.lists(st.sampled_from(list(Side)), min_size=8, max_size=8), st.text(max_size=20))
def test_nothing_raises_on_any_text(texts: list[str], sides: list[Side], reply: str) -> None:
    turns = [
        greeting(SCENARIO),
        *(Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, texts, strict=False)),
    ]
    ending = TASK.ending(SCENARIO, turns)
    outcome = TASK.outcome(SCENARIO, turns, ending or "max_turns")
    assert -1.0 < outcome.reward <= 1.0
    assert all(TASK.acts(SCENARIO, turns, i) for i in range(len(turns)))
    assert 0.0 <= TASK.profile(SCENARIO, turns)["goal_kept"] <= 1.0
    assert HUMAN.log_prob(SCENARIO, turns, reply) <= 0.0
    assert HUMAN.log_prob(SCENARIO, turns, HUMAN.sample(SCENARIO, turns, 0)) > -math.inf
    assert HUMAN.reply(SCENARIO, turns)
    assert TASK.logged_turn(SCENARIO, turns, 0)


def test_logs_have_their_shape() -> None:
    logs = build("calibrated_rl.logs.scripted:ScriptedLogs", {"calibration": 200, "tuning": 0}, task=TASK)
    assert isinstance(logs, LogReader) and isinstance(TASK, ScriptedTask) and isinstance(HUMAN, ScriptedHuman)
    dialogues = logs.read(Split.CALIBRATION)
    assert [d.scenario.id for d in dialogues[:2]] == ["calibration-000000", "calibration-000001"]
    assert {d.ending for d in dialogues} <= {"closed", "left", "max_turns"}
    for d in dialogues:
        assert d.kind == "log" and d.outcome is not None
        assert [t.side for t in d.turns[:2]] == [Side.POLICY, Side.USER]
        assert d.turns[0].source is Source.GREETING and all(t.source is Source.LOG for t in d.turns[1:])
        assert len(d.annotations["acts"]) == len(d.turns)
        assert all(HUMAN.log_prob(d.scenario, d.turns[:i], d.turns[i].text) > -math.inf for i in d.user_turn_indices())
    again = ScriptedLogs(ScriptedLogs.Config(calibration=200), task=TASK).read(Split.CALIBRATION)
    assert [d.turns for d in again] == [d.turns for d in dialogues]
    with pytest.raises(UserError, match="tuning split is empty"):
        logs.read(Split.TUNING)
    with pytest.raises(UserError, match="notise"):
        build("calibrated_rl.logs.scripted:ScriptedLogs", {"human_config": {"notise": 1.0}}, task=TASK)
    with pytest.raises(UserError, match="no scripted human"):
        ScriptedLogs(ScriptedLogs.Config(human="calibrated_rl.examples.front_desk:FrontDesk"), task=TASK)


OUTSIDE = """
from dataclasses import dataclass
from calibrated_rl.data.dialogue import Outcome, Scenario

class Echo:
    @dataclass(frozen=True)
    class Config:
        word: str = "hm"
    def __init__(self, config, task=None):
        self.config, self.name, self.max_policy_turns = config, "echo", 2
    def scenarios(self, split, count, population="same"):
        return [Scenario(id=f"{split}-{i}", split=split, policy_instructions="", user_instructions="",
                         greeting="hey") for i in range(count)]
    def ending(self, scenario, turns): return None
    def outcome(self, scenario, turns, ending): return Outcome(reward=0.5, success=False)
    def acts(self, scenario, turns, index): return ("talk",)
    def profile(self, scenario, turns): return {}
    def logged_turn(self, scenario, turns, seed): return f"why {seed}"
    def reply(self, scenario, turns): return self.config.word
    def sample(self, scenario, turns, seed): return self.config.word
    def log_prob(self, scenario, turns, reply): return 0.0
"""


def test_logs_of_a_task_outside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "echo_world.py").write_text(OUTSIDE)
    path = f"{tmp_path / 'echo_world.py'}:Echo"
    config = ScriptedLogs.Config(human=path, human_config={"word": "mm"}, held_out=3, seed=7)
    dialogues = ScriptedLogs(config, task=build(path)).read(Split.HELD_OUT)
    assert len(dialogues) == 3
    assert [t.text for t in dialogues[0].turns] == ["hey", "mm", "why 7", "mm", "why 7"]
    assert dialogues[0].ending == "max_turns" and dialogues[0].task == "echo"


def test_the_world_separates_the_policies() -> None:
    """The point of the world: booking at once pays with cooperative people only, and the habit of the logs is far from
    what pays with all."""
    assert results(1.0, "same", instant_turn, 200)["success"] == 1.0
    assert results(0.0, "same", instant_turn, 400)["success"] < 0.10
    habit, asking, best = (results(0.0, "same", p, 400)["reward"] for p in (logged_turn, expert_turn, best_turn))
    assert habit < 0.5 * best and habit + 0.1 < asking < best - 0.1 and best > 0.7


@pytest.mark.parametrize("values", [{"notice": 1.5}, {"leave_bad": -0.1}, {"cooperativeness": 2.0}])
def test_bad_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        build("calibrated_rl.examples.front_desk:FrontDeskHuman", values)


def main() -> None:
    print(f"{'policy':8} {'people':12} reward success turns  left words")
    for name, policy in (
        ("logged", logged_turn), ("form", form_turn), ("expert", expert_turn), ("best", best_turn),
        ("instant", instant_turn),
    ):  # fmt: skip
        for label, c, population in (
            ("human", 0.0, "same"), ("0.5", 0.5, "same"), ("cooperative", 1.0, "same"), ("shifted", 0.0, "shifted")
        ):  # fmt: skip
            r = results(c, population, policy, 1000)
            print(f"{name:8} {label:12} {r['reward']:6.3f} {r['success']:7.3f} {r['turns']:5.2f} "
                  f"{r['left']:5.3f} {r['words']:5.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
