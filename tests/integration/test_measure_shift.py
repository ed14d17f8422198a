"""Two sets of dialogues from files: what is read, what comes out of sets that are alike, apart, odd or empty."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calibrated_rl.components.short_names import short_names
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.errors import UserError
from calibrated_rl.evaluation.live_simulator import LiveSimulator
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.shift.checked import ESTIMATORS, settings_of
from calibrated_rl.shift.compare_sets import compare_sets
from calibrated_rl.shift.estimators.coverage import Coverage
from calibrated_rl.shift.estimators.similarity import Similarity
from calibrated_rl.shift.interface import DialogueSets
from calibrated_rl.shift.sources import matched_replies, read_source, sample_dialogues
from calibrated_rl.shift.verdict import verdict
from tests.support.made_up_logs import dialogue, policy, population, terse, user, wordy
from tests.support.paths import ROOT, SHARED
from tests.unit.test_outside_estimator import CURIOSITY
from tests.unit.test_outside_reader import LINES

DATA = SHARED / "data" / "casino"
POPULATIONS = ("mauve", "lengths", "act_divergence", "similarity", "coverage")
"""The estimators that compare whole populations."""


def compare(human: Sequence[Dialogue], simulator: Sequence[Dialogue], *names: str) -> dict[str, str]:
    """Each figure's reading."""
    sets = DialogueSets(human=human, simulator=simulator)
    found = compare_sets(sets, names or POPULATIONS, encoder="hashing", null_halvings=3)
    return {name: verdict(figure) for name, figure in found.estimates.items()}


def test_people_and_other_people_are_not_told_apart_and_another_manner_is() -> None:
    people, others = population(terse, 60, 0), population(terse, 60, 1, "q")
    alike = compare(people, others)
    assert "apart" not in alike.values()
    assert {word for name, word in alike.items() if "mean_" not in name} == {"within the null band"}
    apart = compare(people, population(wordy, 60, 2, "w"))
    far = ("mauve", "wasserstein_turn_words", "acts_jensen_shannon", "similarity_style", "similarity_total", "coverage")
    for name in far:
        assert apart[name] == "apart", name
    assert apart["wasserstein_user_turns"] == "within the null band"  # both talk for three to five turns


def test_identical_sets() -> None:
    people = population(terse, 30, 0)
    sets = DialogueSets(human=people, simulator=people)
    found = compare_sets(sets, POPULATIONS, encoder="hashing", null_halvings=2)
    value = {name: figure.value for name, figure in found.estimates.items()}
    assert value["mauve"] == pytest.approx(1)
    assert value["wasserstein_turn_words"] == value["wasserstein_user_turns"] == value["acts_jensen_shannon"] == 0
    # Copies are nearer to people than people are to one another, which coverage shows and similarity cannot.
    assert value["coverage"] > 1.2 and value["similarity_total"] > 95
    assert {verdict(figure) for figure in found.estimates.values()} == {"within the null band"}


def test_empty_sets_are_refused_by_side() -> None:
    people = population(terse, 12, 0)
    for sets, side in (((people, []), "simulator"), (([], people), "human")):
        with pytest.raises(UserError, match=f"no dialogues on the {side} side"):
            compare(*sets)


def test_one_dialogue_gives_figures_without_limits_or_says_what_is_missing() -> None:
    people, one = population(terse, 12, 0), population(terse, 1, 1, "q")
    sets = DialogueSets(human=people, simulator=one)
    found = compare_sets(sets, short_names(ESTIMATORS), encoder="hashing", null_halvings=0)
    assert {"words", "surface", "acts", "tokens", "encoder", "history", "similarity"} == set(found.refused)
    assert "on each side, not 1" in found.refused["words"] and "at least 8 dialogues" in found.refused["similarity"]
    assert all(figure.as_dict()["low"] is None for figure in found.estimates.values())
    assert found.estimates["wasserstein_turn_words"].value > 0 and found.estimates["coverage"].value > 0
    with pytest.raises(UserError, match="at least 4 users"):
        Coverage().measure(DialogueSets(human=people[:3], simulator=people))


def test_dialogues_without_user_turns() -> None:
    people = population(terse, 20, 0)
    silent = [dialogue(f"s{i}", policy("Hello!")) for i in range(20)]
    for name, message in (
        ("mauve", "at least 2 user turns on each side, not 0"),
        ("lengths", "no user says anything"),
        ("act_divergence", "carry no dialogue acts"),
        ("similarity", "no user ever speaks on the simulator side"),
        ("coverage", "no user ever speaks on the simulator side"),
    ):
        with pytest.raises(UserError, match=message):
            compare(people, silent, name)
    # A few silent ones among others cost nothing but count as dialogues of no turn.
    assert "apart" not in compare([*people, *silent[:2]], [*population(terse, 20, 1, "q"), *silent[2:4]]).values()


def test_very_long_turns_are_measured_in_bounded_time() -> None:
    long = [dialogue(f"l{i}", policy("Hello!"), user("word " * 30_000)) for i in range(8)]
    people = population(terse, 16, 0)
    found = compare(people, long)
    assert found["wasserstein_turn_words"] == "apart" and found["similarity_style"] != "within the null band"


def test_what_only_settings_can_get_wrong() -> None:
    people = population(terse, 12, 0)
    with pytest.raises(UserError, match="there is no estimator 'blue'"):
        compare(people, people, "blue")
    with pytest.raises(UserError, match="no sentence encoder 'nowhere'"):
        compare_sets(DialogueSets(human=people, simulator=people), ["mauve"], encoder="nowhere")
    with pytest.raises(UserError, match="null_halvings is -1: it must be at least 0"):
        Similarity(Similarity.Config(null_halvings=-1))
    with pytest.raises(UserError, match="at least 1"):
        Similarity(Similarity.Config(rounds=0))
    assert settings_of("mauve", 3, "hashing", 0) == {"seed": 3, "null_halvings": 0, "encoder": "hashing"}


# --- sources ---------------------------------------------------------------------------------------------------


def write(file: Path, dialogues: Sequence[Dialogue]) -> Path:
    lines = [
        {"id": d.scenario.id, "turns": [{"side": t.side.value, "text": t.text} for t in d.turns]} for d in dialogues
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_sources_are_read_by_kind(tmp_path: Path) -> None:
    people = population(terse, 5, 0)
    file = write(tmp_path / "logs.jsonl", people)
    file.write_text(file.read_text() + "not json\n")
    read = read_source(str(file))
    assert [d.scenario.id for d in read.dialogues] == [f"p{i}" for i in range(5)] and read.left_out == 1
    assert [t.text for t in read.dialogues[0].turns] == [t.text for t in people[0].turns]
    odd = tmp_path / "a@b.jsonl"
    write(odd, people)
    assert len(read_source(str(odd)).dialogues) == 5
    run = tmp_path / "run"
    # The layout of a run: one store for each arm and seed, one for the logs.
    for seed in (0, 1):
        store = ReplayStore(run / "replay" / f"calibrated-{seed}")
        store.append([replace(d, kind="rollout", arm="calibrated", id=f"r{seed}{i}") for i, d in enumerate(people)])
        store.append([replace(people[0], kind="evaluation", arm="calibrated/held_out", id=f"e{seed}")])
    ReplayStore(run / "replay" / "logs").append(people[:3])
    assert len(read_source(str(run)).dialogues) == len(read_source(f"{run}@calibrated").dialogues) == 10
    assert len(read_source(str(run / "replay" / "calibrated-0")).dialogues) == 5
    assert [d.id for d in read_source(f"{run}@calibrated/held_out").dialogues] == ["e0", "e1"]
    assert [d.id for d in read_source(f"{run}@logs").dialogues] == ["log-p0", "log-p1", "log-p2"]
    assert "acts" in read_source(f"{run}@logs").dialogues[0].annotations
    split = people[0].scenario.split.value
    assert len(read_source(f"{run}@logs/{split}").dialogues) == 3
    with pytest.raises(UserError, match="no dialogues of 'logs/blue'"):
        read_source(f"{run}@logs/blue")
    with pytest.raises(UserError, match="no dialogues of 'blue'; there are calibrated, calibrated/held_out, logs"):
        read_source(f"{run}@blue")
    ReplayStore(run / "replay" / "static-0").append([replace(people[0], kind="rollout", arm="static")])
    with pytest.raises(UserError, match="the dialogues of 2 arms; name one as .*@ARM of calibrated, "):
        read_source(str(run))
    with pytest.raises(UserError, match="only a run folder has arms"):
        read_source(f"{file}@calibrated")
    with pytest.raises(UserError, match="there is no file or folder"):
        read_source(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither CaSiNo, nor a run's replay, nor a run folder"):
        read_source(str(tmp_path / "empty"))
    assert [d.id for d in sample_dialogues(people, 2, 0)] == [d.id for d in sample_dialogues(people, 2, 0)] and len(
        sample_dialogues(people, 0, 0)
    ) == 5


def test_replies_are_matched_on_the_same_history_of_the_same_person() -> None:
    one = [dialogue("a", policy("hi"), user("yes"), policy("when?"), user("now"))]
    other = [
        dialogue("a", policy("hi"), user("yes"), policy("when?"), user("later")),
        dialogue("b", policy("hi"), user("no")),
    ]
    matched = matched_replies(DialogueSets(human=one, simulator=other))
    assert list(matched.human) == ["yes", "now"] and list(matched.simulator) == ["yes", "later"]
    assert list(matched.turn) == [1, 2] and [len(h) for h in matched.histories] == [1, 3]
    assert not len(matched_replies(DialogueSets(human=one, simulator=other[1:])))


# --- the command -------------------------------------------------------------------------------------------------


def job(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "measure_shift.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=720)


def test_likelihood_is_of_the_temperature_at_which_a_simulator_speaks_or_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Engines score prompts at temperature 1 alone."""

    def likelihood(sampling: SamplingConfig) -> dict[str, Any]:
        side = SimpleNamespace(sampling=sampling, engine=SimpleNamespace(max_model_len=64))
        live: Any = SimpleNamespace(
            name="runs/a:calibrated", inputs=SimpleNamespace(config=SimpleNamespace(simulator=side)),
        )  # fmt: skip
        return LiveSimulator._likelihood(live, [])

    assert likelihood(SamplingConfig(temperature=0.5)) == {} and "speaks at temperature 0.5" in caplog.text
    assert likelihood(SamplingConfig(top_k=20)) == {} and "simulator.sampling has top_k" in caplog.text


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    people, others = write(tmp_path / "a.jsonl", population(terse, 30, 0)), population(wordy, 30, 0)
    out = tmp_path / "out" / "figures.json"
    names = "surface,lengths,act_divergence"
    done = job(people, write(tmp_path / "b.jsonl", others), "--estimators", names, "--limit", "24", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "verdict" in rows["estimate"] and rows["surface_unmatched_accuracy"].endswith("apart")
    assert "not measured: act_divergence: acts_jensen_shannon: the dialogues carry no dialogue acts" in done.stdout
    written = json.loads(out.read_text())
    assert written["reference"]["dialogues"] == written["compared"]["dialogues"] == 24
    figure = written["estimates"]["surface_unmatched_accuracy"]
    assert figure["verdict"] == "apart" and figure["low"] > figure["null_band"][1]
    # Both files call their people p0, p1, ..., greet alike: so the first turns are matched, and only these.
    assert written["matched_replies"] > 0 and [t["turn"] for t in written["estimates"]["surface_tv"]["by_turn"]] == [1]


def test_the_command_explains_itself_and_refuses_what_is_not_there(tmp_path: Path) -> None:
    help_text = job("--help")
    assert help_text.returncode == 0 and "docs/shift.md" in help_text.stdout
    missing = job(tmp_path / "nothing.jsonl", tmp_path / "nothing.jsonl")
    assert missing.returncode == 2 and missing.stderr.startswith("error: there is no file or folder")
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_command_takes_a_reader_and_an_estimator_from_files_of_ones_own(tmp_path: Path) -> None:
    reader, estimator = tmp_path / "reader.py", tmp_path / "estimator.py"
    reader.write_text(LINES)
    estimator.write_text(CURIOSITY.replace("{returned}", "sets.nothing"))
    people = tmp_path / "people.txt"
    people.write_text("".join(f"p{i}|held_out|yes, day {i}|why?|so\n" for i in range(12)))
    names, reads = f"lengths,{estimator}:Curiosity", ("--reader", f"{reader}:Lines", "--null-halvings", "2")
    done = job(f"{people}@held_out", "--estimators", names, *reads, "--reader-config", "greeting=hi")
    assert done.returncode == 0, done.stderr
    shown = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    assert {"curiosity", "wasserstein_turn_words"} <= shown
    done = job(people, "--estimators", f"lengths,{estimator}:Mine", *reads)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "error: the estimator Mine: measure" in done.stderr and f"{estimator}:30: return sets.nothing" in done.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason="the CaSiNo data is not on this machine")
def test_two_halves_of_casino_are_not_told_apart(tmp_path: Path) -> None:
    out = tmp_path / "casino.json"
    names = "surface,lengths,act_divergence,similarity,mauve"
    quick = ("--limit", "80", "--encoder", "hashing", "--null-halvings", "3")
    done = job(DATA, "--estimators", names, *quick, "--out", out)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["estimates"]
    assert len(figures) > 20
    assert not [name for name, figure in figures.items() if figure["verdict"] == "apart"]
