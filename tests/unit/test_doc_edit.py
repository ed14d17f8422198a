"""DocEdit-Chat: drafts and their BLEU, texts of any folder, and that no file is in two splits."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.doc_edit import DocEdit
from calibrated_rl.examples.doc_edit.documents import DocumentSource, read_documents, split_documents
from calibrated_rl.examples.doc_edit.task import draft_of
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.tasks.checked import checked_task
from tests.support.paths import SHARED

PEOPLE = SHARED / "data" / "simulatorarena" / "document_creation.json"
TASK = "calibrated_rl.examples.doc_edit:DocEdit"
TEXT = "the quick brown fox jumps over the lazy dog while file number {} looks on from the other side"


def write(folder: Path, files: int = 8) -> Path:
    (folder / "more").mkdir(parents=True)
    for number in range(files):
        place = folder / ("more" if number % 2 else "") / f"{number}.{('txt', 'md')[number % 2]}"
        place.write_text(f"{TEXT.format(number)}\n\n{TEXT.format(number)} again and again\n")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    return folder


def sizes(folder: Path, **config: Any) -> dict[str, Any]:
    return {
        "path": str(folder),
        "fewest_words": 10,
        "most_words": 30,
        "held_out": 3,
        "monitor": 1,
        "tuning": 1,
    } | config


@pytest.fixture
def task(tmp_path: Path) -> DocEdit:
    made: DocEdit = build(TASK, sizes(write(tmp_path / "texts")))
    return made


def scenario_of(task: DocEdit) -> Scenario:
    return task.scenarios(Split.CALIBRATION, 1)[0]


def said(*texts: str) -> list[Turn]:
    """The policy's greeting, then the sides in turn, the user first."""
    sides = [Side.POLICY, Side.USER] * (len(texts) + 1)
    return [Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, ("hi", *texts), strict=False)]


# ---- documents -------------------------------------------------------------------------------------------


def test_texts_are_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = ["one two three", "four five", "six " * 20, "seven eight nine ten", "eleven"]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    pieces, problems = read_documents(DocumentSource(path=str(tmp_path), fewest_words=2, most_words=6))
    assert [piece.text for piece in pieces] == ["one two three\n\nfour five", "seven eight nine ten\n\neleven"]
    assert not problems and [(piece.file, piece.number) for piece in pieces] == [("a.txt", 0), ("a.txt", 1)]


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), max_size=12), st.integers(1, 8))
def test_pieces_keep_to_their_sizes(
    tmp_path_factory: pytest.TempPathFactory, words: list[list[str]], most: int
) -> None:
    file = tmp_path_factory.mktemp("texts") / "a.txt"
    file.write_text("\n\n".join([" ".join(paragraph) for paragraph in words] + ["z"]))
    pieces, _ = read_documents(DocumentSource(path=str(file), fewest_words=1, most_words=most))
    assert all(1 <= len(piece.text.split()) <= most for piece in pieces)
    kept = {" ".join(paragraph) for paragraph in words if len(paragraph) <= most} | {"z"}
    assert {paragraph for piece in pieces for paragraph in piece.text.split("\n\n")} == kept


def test_no_file_is_in_two_splits(tmp_path: Path) -> None:
    source = DocumentSource(**sizes(write(tmp_path / "texts")))
    documents, problems = read_documents(source)
    assert len(documents) == 16 and not problems
    splits = split_documents(documents, source)
    assert {split: len(pieces) for split, pieces in splits.items()} == {
        Split.HELD_OUT: 4, Split.MONITOR: 2, Split.TUNING: 2, Split.CALIBRATION: 8,
    }  # fmt: skip
    files = [file for pieces in splits.values() for file in {piece.file for piece in pieces}]
    assert len(files) == len(set(files)) == 8
    assert split_documents(documents[::-1], source)[Split.HELD_OUT][0].file == splits[Split.HELD_OUT][0].file


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"path": "nowhere"}, "there is no nowhere; wanted are texts"),
        ({"fewest_words": 500, "most_words": 600}, "has no text of 500 to 600 words; wanted"),
        ({"held_out": 15}, "leave nothing of 16 pieces of 8 files"),
    ],
)
def test_what_is_no_source_of_texts_is_refused(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        build(TASK, sizes(write(tmp_path / "texts")) | config)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "texts")
    (folder / "latin.txt").write_bytes("Müller".encode("latin-1"))
    documents, problems = read_documents(DocumentSource(**sizes(folder)))
    assert len(documents) == 16 and len(problems) == 1 and "latin.txt" in problems[0].file


# ---- the task --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "draft"),
    [
        ("Here it is.\nDocument:\nDear Ann,\n\nyes.", "Dear Ann,\n\nyes."), ("**Document:**\nHi", "Hi"),
        ("Document: Hi", None), ("The document:\nHi", None), ("Document:\n", None),
        ("Document:\none\nDocument:\ntwo", "one\nDocument:\ntwo"),
    ],
)  # fmt: skip
def test_a_draft_is_all_below_its_line(text: str, draft: str | None) -> None:
    assert draft_of(text) == draft


def test_rewards(task: DocEdit) -> None:
    scenario = scenario_of(task)
    text = str(scenario.goal["document"])
    same = said("A fox", f"So\nDocument:\n{text}", "Done")
    assert task.ending(scenario, same) == "done" and task.ending(scenario, same[:-1]) is None
    outcome = checked_task(task).outcome(scenario, same, "done")
    assert outcome.reward == pytest.approx(1) and outcome.success and outcome.details["policy_words"] == 1
    # The last draft counts, and one that says half of it is worth less; nothing without any.
    half = " ".join(text.split()[: len(text.split()) // 2])
    shorter = task.outcome(scenario, said("A fox", f"Document:\n{text}", "Short", f"Document:\n{half}"), "max_turns")
    assert 0 < shorter.reward < 0.6 and shorter.details["drafts"] == 2
    assert task.outcome(scenario, said("A fox", text), "max_turns").reward == 0
    # Unigrams to 4-grams of 8 words in 16, all in the text: precision 1, brevity penalty exp(1 - 16 / 8).
    exact = build(TASK, sizes(Path(task.config.path)))
    target = Scenario(
        id="x", split=Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="",
        goal={"document": " ".join(f"word{i}" for i in range(16))},
    )  # fmt: skip
    draft = " ".join(f"word{i}" for i in range(8))
    assert exact.outcome(target, said("x", f"Document:\n{draft}"), "max_turns").reward == pytest.approx(
        0.367879, abs=1e-5
    )


def test_words_beside_drafts_cost(tmp_path: Path) -> None:
    task = build(TASK, sizes(write(tmp_path / "texts"), word_cost=0.1))
    scenario = scenario_of(task)
    turns = said("A fox", "Which fox ?", "Brown", f"Here\nDocument:\n{scenario.goal['document']}")
    assert task.outcome(scenario, turns, "max_turns").reward == pytest.approx(1 - 0.1 * 4)
    assert task.outcome(scenario, said("A fox", "word " * 50), "max_turns").reward == 0


def test_only_the_user_is_done_and_not_at_once(task: DocEdit) -> None:
    scenario = scenario_of(task)
    assert task.ending(scenario, said("A fox", "Done")) is None
    assert task.ending(scenario, said("I am done with it")) is None
    assert task.against_goal(scenario, said("Done")) and not task.against_goal(scenario, said("Hi", "What ?", "Done."))


def test_what_a_user_tells(task: DocEdit) -> None:
    scenario = scenario_of(task)
    turns = said("A quick brown thing", "Document:\nx", "No , make it shorter ?", "Document:\nx", "Done")
    profile = task.profile(scenario, turns)
    assert profile["done"] == 1 and profile["corrections"] == 0.5 and profile["questions"] == pytest.approx(1 / 3)
    assert 0 < profile["first_turn_disclosure"] < 0.5
    assert task.acts(scenario, turns, 3) == ("correct", "change", "ask") and task.acts(scenario, turns, 2) == ("draft",)
    assert task.acts(scenario, turns, 5) == ("done",)


@pytest.mark.skipif(not PEOPLE.is_file(), reason="the data of SimulatorArena is not on this machine")
def test_real_people_are_logs_of_the_task_without_its_texts(task: DocEdit) -> None:
    logs = JsonLines(JsonLines.Config(path=str(PEOPLE)), task=checked_task(task))
    dialogues = [dialogue for split in Split for dialogue in logs.read(split)]
    assert len(dialogues) == 31 and not logs.problems and all(dialogue.outcome is None for dialogue in dialogues)
    assert "first_turn_disclosure" not in task.profile(dialogues[0].scenario, dialogues[0].turns)
