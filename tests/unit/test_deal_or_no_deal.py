"""Deal or No Deal: points as the data states them, both views of a dialogue, entries that the other does not hear."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.config.load import load_config, variants_of
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.deal_or_no_deal import AgreeableNegotiator, DealLogs, DealOrNoDeal
from calibrated_rl.examples.deal_or_no_deal.deals import (
    Refusal,
    accepted_first_offer,
    entry_text,
    fits,
    negotiate,
    points,
    read_entry,
    read_offer,
    rest_of,
)
from calibrated_rl.examples.deal_or_no_deal.negotiators import AttentiveNegotiator, candidates, features
from calibrated_rl.examples.deal_or_no_deal.records import read_file
from calibrated_rl.logs.base import LogReader
from calibrated_rl.logs.checked import checked_reader
from calibrated_rl.logs.scripted import ScriptedLogs
from calibrated_rl.tasks.base import ScriptedHuman, ScriptedTask
from calibrated_rl.tasks.checked import checked_task
from tests.support.paths import ROOT, SHARED

DATA = SHARED / "data" / "dealornodeal"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the Deal or No Deal data is not on this machine")
TASK = "calibrated_rl.examples.deal_or_no_deal:DealOrNoDeal"
READER = "calibrated_rl.examples.deal_or_no_deal:DealLogs"

OWN, OTHER = "1 0 4 2 1 2", "1 4 4 1 1 2"
VIEWS = (
    f"{OWN} YOU: i would like 4 hats . <eos> THEM: deal <eos> "
    f"YOU: <selection> item0=0 item1=4 item2=0 <eos> reward=8 agree {OTHER}",
    f"{OTHER} THEM: i would like 4 hats . <eos> YOU: deal <eos> "
    f"THEM: <selection> item0=1 item1=0 item2=1 <eos> reward=6 agree {OWN}",
)
"""One dialogue, as both saw it."""


def lines(count: int) -> list[str]:
    """Both views of ``count`` dialogues, first all of one side's."""
    return [view.replace("would like", f"would like {number}th time") for view in VIEWS for number in range(count)]


def write(folder: Path, content: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dialogues.txt").write_text("\n".join(content) + "\n")
    return folder


def parts(folder: Path, **config: Any) -> tuple[DealOrNoDeal, DealLogs]:
    values = {"path": str(folder), "held_out": 3, "monitor": 1, "tuning": 1} | config
    task = build(TASK, {key: value for key, value in values.items() if key != "only"})
    return task, build(READER, values, task=task)


@pytest.fixture
def small(tmp_path: Path) -> tuple[DealOrNoDeal, DealLogs]:
    return parts(write(tmp_path / "data", lines(8)))


def pairs(*texts: str, first: Side = Side.USER) -> list[tuple[Side, str]]:
    return [(first if number % 2 == 0 else first.other, text) for number, text in enumerate(texts)]


def turns_of(*texts: str) -> list[Turn]:
    """The policy's empty greeting, then the sides in turn, USER first."""
    sides = [Side.POLICY, *([Side.USER, Side.POLICY] * len(texts))]
    return [Turn(side=side, text=text, source=Source.LOG) for side, text in zip(sides, ("", *texts), strict=False)]


# --- the real file -------------------------------------------------------------------------------------------


@needs_data
def test_recomputed_points_equal_the_logged_ones_on_every_line_that_has_them() -> None:
    file = read_file(DATA)
    assert file.problems == []
    compared = sum(len(record.logged_points) for record in file.records)
    for record in file.records:
        for side, stated in record.logged_points.items():
            entry = record.entries[side]
            assert isinstance(entry, tuple) and points(entry, record.values[side]) == stated
    # Of 11,182 lines 360 are of dialogues whose other entry is not known, and 346 of these have points.
    stated_lines = sum(" reward=no" not in line and " reward=dis" not in line for line in _raw())
    assert (file.left_out, len(file.records), compared, stated_lines) == (360, 5413, 9565, 9911)


@needs_data
def test_rewards_in_real_logs_are_those_of_the_agreeing_lines_and_else_0() -> None:
    task = DealOrNoDeal(DealOrNoDeal.Config(path=str(DATA)))
    records = {record.id: record for records in task.records.values() for record in records}
    logs = DealLogs(DealLogs.Config(path=str(DATA)), task=task).read(Split.CALIBRATION)
    for log in logs:
        record, seat = records[log.annotations["dialogue"]], 0 if log.scenario.greeting else 1
        agree = fits(*record.entries, record.counts)
        assert log.outcome is not None and log.outcome.success is agree
        entry = record.entries[seat]
        expected = points(entry, record.values[seat]) / 10 if agree and isinstance(entry, tuple) else 0
        assert log.outcome.reward == expected
        assert not agree or seat not in record.logged_points or expected == record.logged_points[seat] / 10
        assert not any(task.against_goal(log.scenario, log.turns[: i + 1]) for i in log.user_turn_indices())
    assert 0.7 < sum(log.outcome.success for log in logs if log.outcome) / len(logs) < 0.9


def _raw() -> list[str]:
    return (DATA / "dialogues.txt").read_text().splitlines()


# --- the file and its views ----------------------------------------------------------------------------------


def test_both_views_make_one_dialogue_with_two_scenarios_in_one_split(small: tuple[DealOrNoDeal, DealLogs]) -> None:
    task, reader = small
    assert len(task.file.records) == 8 and reader.problems == []
    seen: dict[str, Split] = {}
    for split in Split:
        logs = reader.read(split)
        assert [log.scenario for log in logs] == task.scenarios(split, len(logs))
        for log in logs:
            assert seen.setdefault(log.annotations["dialogue"], split) is split
        half = len(logs) // 2
        assert not any(log.scenario.greeting for log in logs[:half]) and all(
            log.scenario.greeting for log in logs[half:]
        )
    assert len(seen) == 8


def test_a_dialogue_from_either_seat(small: tuple[DealOrNoDeal, DealLogs]) -> None:
    answers, opens = [log for log in small[1].read(Split.MONITOR)]
    assert [turn.text for turn in answers.turns[2:]] == [
        "deal", "selection : book 0 hat 4 ball 0", "selection : book 1 hat 0 ball 1",
    ]  # fmt: skip
    assert opens.turns[0].text == answers.turns[1].text and opens.turns[1:] != answers.turns[1:]
    assert answers.outcome and answers.outcome.reward == 0.6 and opens.outcome and opens.outcome.reward == 0.8
    assert answers.scenario.policy_instructions == "book 1 worth 4 hat 4 worth 1 ball 1 worth 2"
    assert answers.scenario.user_instructions == opens.scenario.policy_instructions


def test_a_line_alone_gets_the_other_entry_where_it_agrees_and_is_left_out_where_not(tmp_path: Path) -> None:
    alone = VIEWS[0].replace("item1=4", "item1=3").replace("reward=8 agree", "reward=6 disagree")
    file = read_file(write(tmp_path / "data", [VIEWS[0], alone.replace("would", "will")]))
    assert [record.entries for record in file.records] == [((0, 4, 0), (1, 0, 1))]
    assert (file.left_out, file.problems) == (1, [])


BROKEN = {
    "reward=8": ("reward=7", "reward=7 where the entry is worth 8"),
    "item1=4": ("item1=5", "of the items (1, 4, 1) cannot be entered"),
    "THEM: deal <eos> ": ("", "one side speaks twice in a row"),
    "THEM: deal": ("HIM: deal", "turn 1 is not 'YOU: words'"),
    "<selection>": ("", "the last turn is no <selection>"),
    "1 0 4 2 1 2 YOU": ("1 0 4 2 1 3 YOU", "are worth 11 to YOU, not 10"),
    "1 4 4 1 1 2": ("2 4 4 1 1 -2", "the line is not: six numbers"),
    "reward=8 ": ("", "the line is not: six numbers"),
    "item0=0 item1=4 item2=0": ("no agreement", "reward=8 is not the reward of"),
    "THEM: deal ": ("THEM: selection : deal ", "talk that is a selection"),
}


@pytest.mark.parametrize("old", BROKEN)
def test_a_malformed_line_is_named_with_its_reason_and_the_rest_is_read(old: str, tmp_path: Path) -> None:
    new, reason = BROKEN[old]
    file = read_file(write(tmp_path / "data", [VIEWS[0].replace("would", "will"), VIEWS[0].replace(old, new, 1)]))
    assert len(file.records) == 1
    assert [problem.line for problem in file.problems] == [2] and reason in file.problems[0].reason


def test_entries_that_fit_cannot_disagree(tmp_path: Path) -> None:
    both = [view.replace("agree", "disagree") for view in VIEWS]
    file = read_file(write(tmp_path / "data", [VIEWS[0].replace("would", "will"), *both]))
    assert [(problem.line, "'disagree' of the entries" in problem.reason) for problem in file.problems] == [(2, True)]


@pytest.mark.parametrize("content", ["", "hello\n", "\x1f\x8b", '{"a": 1}\n'])
def test_a_file_without_a_dialogue_is_refused_by_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "dialogues.txt"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"dialogues\.txt"):
        read_file(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_file(tmp_path / "other")


def test_reader_and_task_must_have_the_same_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", lines(8))
    task, _ = parts(folder)
    with pytest.raises(UserError, match="'seed' is 3 and the task's is 0"):
        build(READER, {"path": str(folder), "held_out": 3, "monitor": 1, "tuning": 1, "seed": 3}, task=task)
    with pytest.raises(UserError, match="leave nothing of 8"):
        parts(folder, held_out=6)


def test_parts_keep_to_their_protocols(small: tuple[DealOrNoDeal, DealLogs]) -> None:
    task, reader = small
    assert isinstance(task, ScriptedTask) and isinstance(reader, LogReader)
    assert isinstance(AgreeableNegotiator(AgreeableNegotiator.Config(), task=task), ScriptedHuman)
    checked = checked_reader(reader, checked_task(task))
    assert sum(len(checked.read(split)) for split in Split) == 16


COUNTS = st.tuples(*[st.integers(0, 5)] * 3)


@given(COUNTS)
def test_an_entry_of_items_is_read_as_it_was_written(entry: tuple[int, int, int]) -> None:
    assert read_entry(entry_text(entry)) == entry
    assert fits(entry, rest_of(entry, (5, 5, 5)), (5, 5, 5))
    assert not fits(entry, rest_of(entry, (5, 5, 6)), (5, 5, 5))


@given(st.text(), COUNTS)
def test_any_text_can_be_heard(text: str, counts: tuple[int, int, int]) -> None:
    state = negotiate(pairs("hi", text, text, text), counts)
    assert all(state.points(side, (10, 10, 10)) == 0 for side in Side)
    offer = read_offer(text, counts)
    assert offer is None or all(0 <= taken <= count for taken, count in zip(offer, counts, strict=True))


# --- rules ---------------------------------------------------------------------------------------------------

MINE, YOURS = "selection : book 1 hat 0 ball 1", "selection : book 0 hat 4 ball 0"


@pytest.mark.parametrize(
    ("said", "ending", "worth"),
    [
        ((MINE, YOURS), "agreed", 8),
        ((MINE, MINE), "disagreed", 0),
        ((MINE, "selection : no agreement"), "disagreed", 0),
        (("selection : disconnect", "selection : no agreement"), "no_agreement", 0),
        ((MINE, "selection : all of it"), "disagreed", 0),
        ((MINE, "deal"), "not_entered", 0),
        ((MINE,), None, 0),
        (("deal", "deal"), None, 0),
    ],
)
def test_how_a_dialogue_ends_and_what_it_is_worth(
    said: tuple[str, ...], ending: str | None, worth: int, small: tuple[DealOrNoDeal, DealLogs]
) -> None:
    task = small[0]
    scenario = next(s for s in task.scenarios(Split.MONITOR, 2) if s.greeting)  # hats are worth 2 to the policy
    turns = turns_of("hats ?", "deal", *said)
    assert task.ending(scenario, turns) == ending
    outcome = task.outcome(scenario, turns, ending or "max_turns")
    assert (outcome.reward, outcome.success) == (worth / 10, ending == "agreed")
    assert outcome.details["user_points"] == (6 if worth else 0)


@pytest.mark.parametrize(
    ("said", "against"),
    [
        ((MINE,), True),
        (("hi", "selection : book 0 hat 0 ball 0", "deal"), True),
        (("hi", "deal", "selection : book 0 hat 5 ball 0"), True),
        (("hi", "deal", "selection : whatever"), True),
        (("hi", "deal", "selection : no agreement"), False),
        (("hi", "deal", YOURS), False),
        (("hi",), False),
    ],
)
def test_what_the_page_made_impossible_is_against_the_goal(
    said: tuple[str, ...], against: bool, small: tuple[DealOrNoDeal, DealLogs]
) -> None:
    task, turns = small[0], turns_of(*said)
    scenario = task.scenarios(Split.MONITOR, 1)[0]
    assert task.against_goal(scenario, turns) is against
    assert task.must_begin(scenario, turns) == ("selection :" if "selection" in said[-1] else "")


@pytest.mark.parametrize(
    ("text", "speaker_gets"),
    [
        ("i would like 4 hats and you can have the rest .", (0, 4, 0)),
        ("you can have the book and both hats , i get the rest", (0, 2, 2)),
        ("book and ball to me", (1, 0, 1)),
        ("you can have all the hats if i get the book and basketballs .", (1, 0, 2)),
        ("i need two hats , you take the others", (0, 2, 0)),
        ("i need one hat and the book , the rest to you", (1, 1, 0)),
        ("alright hats and balls for you , book for me .", (1, 0, 0)),
        ("you can have everything", (0, 0, 0)),
        ("i want everything", (1, 4, 2)),
        ("i take the rest", None),
        ("what do you value ?", None),
        (MINE, None),
    ],
)
def test_offers_are_read_by_rule(text: str, speaker_gets: tuple[int, int, int] | None) -> None:
    assert read_offer(text, (1, 4, 2)) == speaker_gets


def test_who_took_the_first_offer() -> None:
    counts = (1, 4, 1)
    taken = pairs("i would like the hats", "sounds good", YOURS, MINE, first=Side.POLICY)
    assert accepted_first_offer(taken, counts)
    assert not accepted_first_offer([(side.other, text) for side, text in taken], counts)
    haggled = pairs("i would like the hats", "no , i need a hat", "ok", YOURS, MINE, first=Side.POLICY)
    assert not accepted_first_offer(haggled, counts)


# --- the study -----------------------------------------------------------------------------------------------


def test_the_study_has_an_agreeable_simulator_and_one_selected_from_real_dialogues(tmp_path: Path) -> None:
    file, folder = ROOT / "configs" / "dealornodeal.yaml", write(tmp_path / "data", lines(60))
    changes = [f"logs.path={folder}", "logs.held_out=10", "logs.monitor=4", "logs.tuning=4"]
    config = load_config(file, changes)
    (variant,) = variants_of(config, file, changes).values()
    assert config.pretraining.human.endswith("AgreeableNegotiator") and not config.pretraining.reader
    assert not variant.pretraining.human and variant.pretraining.logs["only"] == "first_offer_accepted"
    assert list(settings_without_effect(config)) == list(settings_without_effect(variant)) == []
    task = build(TASK, variant.task_config)
    logs = build(str(variant.pretraining.reader), variant.pretraining.logs, task=task).read(Split.CALIBRATION)
    assert logs and all(log.scenario.greeting and log.turns[1].text == "deal" for log in logs)


# --- the agreeable negotiator --------------------------------------------------------------------------------


def scripted(small: tuple[DealOrNoDeal, DealLogs]) -> list[Dialogue]:
    human = "calibrated_rl.examples.deal_or_no_deal:AgreeableNegotiator"
    config = ScriptedLogs.Config(human=human, calibration=6, monitor=2, tuning=0, held_out=0)
    return ScriptedLogs(config, task=small[0]).read(Split.CALIBRATION)


def test_the_agreeable_negotiator_gives_what_is_asked_for(small: tuple[DealOrNoDeal, DealLogs]) -> None:
    dialogues = scripted(small)
    opened = [dialogue for dialogue in dialogues if dialogue.scenario.greeting]
    assert 0 < len(opened) < len(dialogues)
    for dialogue in opened:  # with 4 hats for itself, which the other side takes at once
        assert dialogue.ending == "agreed" and dialogue.outcome and dialogue.outcome.details["policy_points"] == 8
        assert [read_entry(turn.text) for turn in dialogue.turns[-2:]] == [(0, 4, 0), (1, 0, 1)]


def test_its_probabilities_are_those_of_its_phrases(small: tuple[DealOrNoDeal, DealLogs]) -> None:
    human = AgreeableNegotiator(AgreeableNegotiator.Config(), task=small[0])
    scenario: Scenario = small[0].scenarios(Split.MONITOR, 1)[0]
    turns = turns_of("hi", "i want the hats")
    drawn = {human.sample(scenario, turns, seed) for seed in range(60)}
    assert math.isclose(sum(math.exp(human.log_prob(scenario, turns, phrase)) for phrase in drawn), 1.0)
    assert human.log_prob(scenario, turns, "no way") == -math.inf
    assert human.reply(scenario, turns) in drawn and human.reply(scenario, turns) == human.reply(scenario, turns)
    assert read_entry(human.reply(scenario, [*turns, *turns_of(MINE, YOURS)[1:]])) == (1, 0, 1)
    assert isinstance(read_entry("selection : disconnect"), Refusal)


# --- proxies that negotiate ----------------------------------------------------------------------------------


def test_entries_are_fitted_to_what_was_offered_and_taken(small: tuple[DealOrNoDeal, DealLogs], tmp_path: Path) -> None:
    logs = [log for split in Split for log in small[1].read(split)]
    config = AttentiveNegotiator.Config(hidden=16, embedding=8, epochs=1)
    proxy, loaded = (AttentiveNegotiator(config, secret_after="selection :") for _ in range(2))
    assert proxy.fit(logs, logs, 0, lambda step, steps: None)["entries"] == 1.0
    proxy.save(tmp_path)
    loaded.load(tmp_path)
    for log in logs:
        index = next(i for i in log.user_turn_indices() if "selection" in log.turns[i].text)
        assert loaded.reply(log.scenario, log.turns[:index], 0, "selection :") == log.turns[index].text


def test_what_a_proxy_enters_does_not_depend_on_an_entry_that_it_cannot_have_heard(
    small: tuple[DealOrNoDeal, DealLogs],
) -> None:
    scenario = small[0].scenarios(Split.MONITOR, 1)[0]
    talk = ("i would like 4 hats", "deal")
    first, second = (features(scenario, turns_of(*talk[:1], "ok", "deal", entry)) for entry in (MINE, YOURS))
    assert (first == second).all() and len(first) == 1 + 2 * 5 * 2 == len(candidates((1, 4, 1)))
