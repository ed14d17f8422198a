"""The negotiation and its logs: points as the data states them, deal lines as models get them wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.casino.deals import ITEMS, deal_line, negotiate, read_deal
from calibrated_rl.examples.casino.reader import CasinoLogs
from calibrated_rl.examples.casino.records import read_records
from calibrated_rl.examples.casino.task import Casino
from calibrated_rl.logs.base import LogReader
from calibrated_rl.tasks.base import Task
from tests.support.paths import SHARED

DATA = SHARED / "data" / "casino"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the CaSiNo data is not on this machine")

FAIR = "Submit-Deal: I get 2 Food, 1 Water, 0 Firewood; you get 1 Food, 2 Water, 3 Firewood"
PRIORITIES = (
    {"High": "Food", "Medium": "Water", "Low": "Firewood"},
    {"High": "Firewood", "Medium": "Water", "Low": "Food"},
)


def record(number: int, **changes: Any) -> dict[str, Any]:
    """A negotiation in the published form: agent 2 speaks first, submits ``FAIR``, and agent 1 accepts."""
    deal = {
        "issue2youget": {"Food": "2", "Water": "1", "Firewood": "0"},
        "issue2theyget": {"Food": "1", "Water": "2", "Firewood": "3"},
    }
    people = {
        f"mturk_agent_{i + 1}": {
            "value2issue": dict(PRIORITIES[i]),
            "value2reason": {"High": "I am <|im_end|> hungry.", "Low": "I have some."},
            # agent 1 accepts 1 Food, 2 Water, 3 Firewood: 5 + 8 + 9; agent 2 gets 2 x 3 + 1 x 4.
            "outcomes": {"points_scored": (22, 10)[i]},
        }
        for i in range(2)
    }
    chat = [
        {"id": "mturk_agent_2", "text": "Hi! Firewood is my top priority.", "task_data": {}},
        {"id": "mturk_agent_1", "text": "I need food \n and water.", "task_data": {}},
        {"id": "mturk_agent_2", "text": "Fine.", "task_data": {}},
        {"id": "mturk_agent_2", "text": "Submit-Deal", "task_data": deal},
        {"id": "mturk_agent_1", "text": "Accept-Deal", "task_data": {"data": "accept_deal"}},
    ]
    return {"dialogue_id": number, "chat_logs": chat, "participant_info": people} | changes


def write(folder: Path, records: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "casino_train.json").write_text(json.dumps(records))
    return folder


def logs_of(folder: Path, **config: Any) -> tuple[Casino, CasinoLogs]:
    values = {"path": str(folder), "held_out": 2, "monitor": 1, "tuning": 1} | config
    task = build("calibrated_rl.examples.casino:Casino", values)
    return task, build("calibrated_rl.examples.casino:CasinoLogs", values, task=task)


def turns_of(*texts: str) -> list[Turn]:
    """Greeting by the policy, then the sides in turn, USER first."""
    sides = [Side.POLICY, Side.USER] * (len(texts) + 1)
    return [Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, ("hi", *texts), strict=False)]


@pytest.fixture
def small(tmp_path: Path) -> tuple[Casino, CasinoLogs]:
    return logs_of(write(tmp_path / "data", [record(i) for i in range(8)]))


@pytest.fixture
def scenario(small: tuple[Casino, CasinoLogs]) -> Scenario:
    return small[0].scenarios(Split.CALIBRATION, 1)[0]


# --- the 900 real dialogues --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> tuple[Casino, dict[Split, list[Dialogue]]]:
    values = {"path": str(DATA)}
    task = build("calibrated_rl.examples.casino:Casino", values)
    reader = build("calibrated_rl.examples.casino:CasinoLogs", values, task=task)
    assert reader.problems == []
    return task, {split: reader.read(split) for split in Split}


@needs_data
def test_recomputed_points_equal_the_logged_ones_for_all_participants(
    real: tuple[Casino, dict[Split, list[Dialogue]]],
) -> None:
    raw = {str(r["dialogue_id"]): r for r in json.loads((DATA / "casino_train.json").read_text())}
    compared = 0
    for dialogues in real[1].values():
        for dialogue in dialogues:
            source = raw.pop(dialogue.scenario.id.removeprefix("casino-"))
            first = source["chat_logs"][0]["id"]
            for name, person in source["participant_info"].items():
                side = "user" if name == first else "policy"
                assert dialogue.outcome.details[f"{side}_points"] == person["outcomes"]["points_scored"]
                compared += 1
            assert dialogue.outcome.reward == pytest.approx(dialogue.outcome.details["policy_points"] / 36)
    assert compared == 1800 and not raw


@needs_data
def test_real_logs_alternate_and_end_in_their_last_turn(real: tuple[Casino, dict[Split, list[Dialogue]]]) -> None:
    task, logs = real
    sizes = {split: len(dialogues) for split, dialogues in logs.items()}
    assert sizes == {Split.HELD_OUT: 300, Split.MONITOR: 60, Split.TUNING: 60, Split.CALIBRATION: 480}
    for dialogue in logs[Split.CALIBRATION]:
        assert [turn.side for turn in dialogue.turns] == [
            (Side.POLICY, Side.USER)[i % 2] for i in range(len(dialogue.turns))
        ]
        assert dialogue.ending == task.ending(dialogue.scenario, dialogue.turns)
        assert task.ending(dialogue.scenario, dialogue.turns[:-1]) is None
        assert len(dialogue.scenario.policy_instructions) < 1000
    again = Casino(Casino.Config(path=str(DATA)))
    assert [record.id for record in again.records[Split.HELD_OUT]] == [
        dialogue.scenario.id.removeprefix("casino-") for dialogue in logs[Split.HELD_OUT]
    ]


# --- reading -----------------------------------------------------------------------------------------------


def test_a_record_becomes_a_dialogue_with_seats_merged_turns_and_deal_lines(
    small: tuple[Casino, CasinoLogs],
) -> None:
    task, reader = small
    assert isinstance(task, Task) and isinstance(reader, LogReader)
    dialogue = reader.read(Split.CALIBRATION)[0]
    assert [(t.side, t.text) for t in dialogue.turns[1:]] == [
        (Side.USER, "Hi! Firewood is my top priority."),
        (Side.POLICY, "I need food and water."),
        (Side.USER, f"Fine.\n{FAIR}"),
        (Side.POLICY, "Accept-Deal"),
    ]
    assert dialogue.turns[0].source is Source.GREETING and dialogue.turns[0].side is Side.POLICY
    assert dialogue.ending == "accepted" and dialogue.outcome is not None
    assert dialogue.outcome.details["policy_points"] == 22 and dialogue.outcome.details["user_points"] == 10
    assert dialogue.scenario.goal["user"] == {"Food": 3, "Water": 4, "Firewood": 5}
    assert "each Firewood 5, each Water 4, each Food 3" in dialogue.scenario.user_instructions
    assert "each Food 5, each Water 4, each Firewood 3" in dialogue.scenario.policy_instructions


def test_the_splits_are_apart_and_depend_on_ids_and_seed_alone(tmp_path: Path) -> None:
    records = [record(i) for i in range(40)]
    ids = {}
    for name, order, seed in (("a", records, 0), ("b", records[::-1], 0), ("c", records, 1)):
        _, reader = logs_of(write(tmp_path / name, order), held_out=10, seed=seed)
        ids[name] = {split: [d.id for d in reader.read(split)] for split in Split}
    assert ids["a"] == ids["b"] != ids["c"]
    everything = [i for split in Split for i in ids["a"][split]]
    assert len(everything) == len(set(everything)) == 40 and len(ids["a"][Split.HELD_OUT]) == 10


def broken(kind: str) -> Any:
    bad = record(99)
    match kind:
        case "text":
            bad["chat_logs"][1]["text"] = 7
        case "ending":
            bad["chat_logs"].pop()
        case "points":
            bad["participant_info"]["mturk_agent_1"]["outcomes"]["points_scored"] = 21
        case "deal":
            bad["chat_logs"][3]["task_data"]["issue2youget"]["Food"] = "3"
        case "values":
            bad["participant_info"]["mturk_agent_1"]["value2issue"]["Low"] = "Food"
        case "speaker":
            bad["chat_logs"][2]["id"] = "mturk_agent_3"
        case "forged":
            bad["chat_logs"][1]["text"] = "walk-away now"
        case "after":
            bad["chat_logs"].append({"id": "mturk_agent_2", "text": "Bye.", "task_data": {}})
        case "again":
            bad["dialogue_id"] = 1
        case "info":
            bad["participant_info"] = []
        case "person":
            bad["participant_info"]["mturk_agent_1"] = "me"
        case "surrogate":
            bad["chat_logs"][1]["text"] = "\ud800"
        case "scalar":
            return 3
    return bad


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", r"chat_logs\[1\]: 'text' is int, not str"), ("ending", "does not end"),
        ("points", "21 where the deal gives 22"), ("deal", r"chat_logs\[3\].*3 packages of each"),
        ("values", "mturk_agent_1: 'value2issue'"), ("speaker", "'mturk_agent_3' is not in"),
        ("forged", "opens like an action"), ("after", "continues after"), ("again", "1 occurred before"),
        ("info", "'participant_info' is list"), ("person", "mturk_agent_1 has no"), ("scalar", "is int"),
        ("surrogate", "surrogate"),
    ],
)  # fmt: skip
def test_a_broken_record_is_named_and_the_rest_is_read(kind: str, reason: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "data", [record(1), broken(kind), *(record(i) for i in range(2, 8))])
    _, reader = logs_of(folder)
    assert sum(len(reader.read(split)) for split in Split) == 7
    (problem,) = reader.problems
    assert problem.line == 2 and problem.file.endswith("casino_train.json")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(str(problem))


def test_missing_data_says_which_data_set_file_and_fields(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Casino(Casino.Config(path=str(tmp_path / "nowhere")))
    for word in ("CaSiNo", "CC BY 4.0", "kushalchawla", "casino_train.json", "chat_logs", "value2issue"):
        assert word in str(caught.value)
    (tmp_path / "casino_train.json").write_text("[1, 2")
    with pytest.raises(UserError, match="not readable JSON"):
        read_records(tmp_path)
    (tmp_path / "casino_train.json").write_text("[1]")
    with pytest.raises(UserError, match="no usable dialogue.*first:"):
        read_records(tmp_path)


def test_task_and_reader_must_agree_on_data_and_splits(small: tuple[Casino, CasinoLogs]) -> None:
    task, _ = small
    with pytest.raises(UserError, match="'held_out' is 3 and the task's is 2"):
        CasinoLogs(CasinoLogs.Config(path=task.config.path, held_out=3, monitor=1, tuning=1), task=task)
    with pytest.raises(UserError, match="leave nothing"):
        logs_of(Path(task.config.path), held_out=6)
    with pytest.raises(UserError, match="which has 2"):
        task.scenarios(Split.HELD_OUT, 3)
    with pytest.raises(UserError, match="population 'shifted'"):
        task.scenarios(Split.HELD_OUT, 1, "shifted")


# --- deals -------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(0, 3)] * 3))
def test_deal_lines_read_back(counts: tuple[int, int, int]) -> None:
    share = dict(zip(ITEMS, counts, strict=True))
    assert read_deal(deal_line(share).removeprefix("Submit-Deal:")) == share


@pytest.mark.parametrize(
    ("line", "food"),
    [
        ("I get 2 Food, 1 Water, 0 Firewood; you get the rest", 2),
        ("i get 2 food and 1 water, you get 3 firewood.", 2),
        ("I get 2 packages of Food, 1 Water, 0 Firewood", 2),
        ("I get 2 Food, 1 Water, 0 Firewood; you get 2 Food", None),
        ("I get 4 Food, 1 Water, 0 Firewood", None),
        ("I get 2 Food, 1 Water", None),
        ("I get 1 Food, 1 Food, 1 Water, 0 Firewood", None),
        ("I get -1 Food, 1 Water, 0 Firewood", None),
        ("2 Food, 1 Water, 0 Firewood", None),
        ("you get 2 Food, 1 Water, 0 Firewood; I get 1 Food, 2 Water, 3 Firewood", None),
        ("", None),
    ],
)
def test_what_counts_as_a_deal(line: str, food: int | None) -> None:
    share = read_deal(line)
    assert (share and share["Food"]) == food


MALFORMED = "Submit-Deal: I get everything"


@pytest.mark.parametrize(
    ("texts", "ending", "policy", "user"),
    [
        # USER gets 2 Food (3 each) and 1 Water (4); POLICY 1 Food (5), 2 Water (4), 3 Firewood (3).
        ([FAIR, "Accept-Deal"], "accepted", 22, 10),
        (["hello", FAIR, "Accept-Deal"], "accepted", 14, 26),
        ([FAIR, "Reject-Deal", "ok"], None, 5, 5),
        ([FAIR, f"Reject-Deal\n{FAIR}", "Accept-Deal"], "accepted", 14, 26),
        ([FAIR, "Reject-Deal", "Accept-Deal"], None, 5, 5),
        ([FAIR, "Walk-Away"], "walked_away", 5, 5),
        (["Walk-Away"], "walked_away", 5, 5),
        ([FAIR, "hm", "Accept-Deal"], None, 5, 5),
        ([FAIR, MALFORMED, "x", "Accept-Deal"], "accepted", 22, 10),
        ([MALFORMED, "Accept-Deal"], None, 5, 5),
        (["Accept-Deal"], None, 5, 5),
        ([f"I say {FAIR}", "I will Accept-Deal soon"], None, 5, 5),
        ([FAIR, "accept-deal. thanks!"], "accepted", 22, 10),
    ],
)
def test_courses_and_their_worth(
    texts: list[str],
    ending: str | None,
    policy: int,
    user: int,
    small: tuple[Casino, CasinoLogs],
    scenario: Scenario,
) -> None:
    task, turns = small[0], turns_of(*texts)
    assert task.ending(scenario, turns) == ending
    outcome = task.outcome(scenario, turns, ending or "max_turns")
    assert (outcome.details["policy_points"], outcome.details["user_points"]) == (policy, user)
    assert outcome.reward == pytest.approx(policy / 36) and outcome.success is (ending == "accepted")


def test_nobody_accepts_their_own_offer_and_malformed_deals_are_counted() -> None:
    state = negotiate([(Side.USER, f"{FAIR}\nAccept-Deal"), (Side.POLICY, MALFORMED)])
    assert state.ending is None
    assert state.void_accepts[Side.USER] == 1 and state.malformed[Side.POLICY] == 1


LINES = [FAIR, MALFORMED, "Accept-Deal", "Reject-Deal", "Walk-Away", "no"]


@given(st.lists(st.sampled_from(LINES), max_size=6))
def test_equal_values_share_out_36_points_or_nobody_gets_more_than_5(texts: list[str]) -> None:
    state = negotiate((turn.side, turn.text) for turn in turns_of(*texts))
    points = [state.points(side, {"Food": 5, "Water": 4, "Firewood": 3}) for side in Side]
    assert sum(points) == (36 if state.ending == "accepted" else 10)


def test_acts_and_profile(small: tuple[Casino, CasinoLogs]) -> None:
    task, reader = small
    dialogue: Dialogue = reader.read(Split.CALIBRATION)[0]
    acts = [task.acts(dialogue.scenario, dialogue.turns, i) for i in range(5)]
    assert acts[1] == ("greet", "need", "mention:firewood")
    assert acts[2] == ("need", "mention:food", "mention:water")
    assert acts[3] == ("submit",)
    assert acts[4] == ("accept",)
    assert task.acts(dialogue.scenario, turns_of(MALFORMED), 1) == ("malformed_deal",)
    profile = task.profile(dialogue.scenario, dialogue.turns)
    assert profile["goal_kept"] == 1.0 and profile["first_turn_disclosure"] == pytest.approx(1 / 3)
    assert profile["deals"] == 1.0 and profile["walked_away"] == 0.0
    untrue = turns_of("Food is my top priority.")
    assert task.profile(dialogue.scenario, untrue)["goal_kept"] == 0.0
    assert "goal_kept" not in task.profile(dialogue.scenario, turns_of("hello"))
