"""The jobs' command lines: help, and mistakes that are refused with one line and exit code 2 before anything starts."""

import asyncio
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.data.dialogue import Side, Source, Turn
from calibrated_rl.evaluation.again import differences
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.run.saved_run import changed_settings, open_run
from calibrated_rl.users.human import HumanUser
from tests.support.paths import MICRO, ROOT

JOBS = ROOT / "jobs"
PEOPLE = "human: calibrated_rl.examples.front_desk:FrontDeskHuman\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two policies and nothing else."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    make_tiny(folder / "policies" / "start-0", ["which day ?", "table please"] * 20, 0)
    shutil.copytree(folder / "policies" / "start-0", folder / "policies" / "calibrated-10")
    (folder / "config.yaml").write_text(PEOPLE + "logs: {calibration: 5, monitor: 5, tuning: 5, held_out: 5}\n")
    (folder / "arms").mkdir()
    (folder / "arms" / "start-0.json").write_text(json.dumps({"updates": 0}))
    return folder


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a job that must end with exit code 2 before it starts anything; returns its one line."""

    def run(job: str, *arguments: object) -> str:
        monkeypatch.syspath_prepend(str(JOBS))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [job, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOBS / f"{job}.py"), run_name="__main__")
        output = capsys.readouterr()
        assert ended.value.code == 2 and "starting" not in output.out
        assert output.err.startswith("error: ") and output.err.count("\n") == 1
        return output.err

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", ["ask", "ask_study", "calibrate", "chat", "compare", "evaluate", "logs", "plan", "train"]
)
def test_help(job: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(JOBS / f"{job}.py"), "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0 and f"python jobs/{job}.py" in done.stdout, done.stderr
    assert all(option in done.stdout for option in ("--verbose", "--quiet", "--log-format {text,json}"))


@pytest.mark.parametrize("job", ["evaluate", "chat"])
def test_run_folders_that_do_not_fit(job: str, refuse, saved: Path, tmp_path: Path) -> None:
    assert "there is no run folder nowhere" in refuse(job, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "has no config.yaml" in refuse(job, "empty")
    (tmp_path / "empty" / "config.yaml").write_text(PEOPLE)
    assert "no trained policy yet" in refuse(job, "empty")
    (tmp_path / "empty" / "policies" / "start-0").mkdir(parents=True)
    assert "start-0 has no config.json" in refuse(job, "empty")
    assert "did you mean 'calibrated-10'" in refuse(job, saved, "--policy", "calibrated-1")


def test_ask_refuses(refuse, saved: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "ask.jsonl")
    assert "there is no run folder nowhere" in refuse("ask", "nowhere", "--count", 3, *out)
    assert "--count" in refuse("ask", saved, *out) and "it is 0: it must be" in refuse("ask", saved, "--count", 0, *out)
    assert "has no dialogues of training" in refuse("ask", saved, "--count", 3, *out)
    (saved / "replay" / "calibrated-10").mkdir(parents=True)
    assert "no dialogues of 'static-0'; there are: calibrated-10" in refuse(
        "ask", saved, "--count", 3, *out, "--arm", "static-0"
    )
    assert "has no dialogue of training in which a user replied" in refuse("ask", saved, "--count", 3, *out)
    (tmp_path / "ask.jsonl").write_text("")
    assert "exists, and humans may have replied" in refuse("ask", saved, "--count", 3, *out)
    study = ("--out", tmp_path / "study")
    assert "no scripted human" in refuse("ask_study", saved, *study, "human=''", "arms=[start]")
    assert "--counts: '100,x'" in refuse("ask_study", saved, *study, "--counts", "100,x")
    assert "needs deterministic=true" in refuse("ask_study", saved, *study)
    assert "no calibrated simulator yet" in refuse("ask_study", saved, *study, "deterministic=true")


def test_evaluate_refuses(refuse, saved: Path) -> None:
    assert "did you mean 'evaluation.scenarios'" in refuse("evaluate", saved, "evaluation.scenario=3")
    assert "evaluation.scenarios is 0: it must be at least 1" in refuse("evaluate", saved, "evaluation.scenarios=0")
    assert "no eval user" in refuse("evaluate", saved, "human=''", "arms=[start]")
    assert "has no model 'proxy'" in refuse("evaluate", saved, "human=''", "arms=[start]", "proxy.model=gemma3-270m")


def test_chat_refuses(refuse, saved: Path, tmp_path: Path) -> None:
    assert "has no model 'calibrated'" in refuse("chat", saved, "--with", "simulator")
    assert "argument --scenario: it is 99999999: it must be at least 0 and at most 100000" in refuse(
        "chat", saved, "--scenario", 99999999
    )
    assert "argument --scenario: it is -1: it must be at least 0" in refuse("chat", saved, "--scenario", -1)
    shutil.copytree(saved, tmp_path / "logs_only")
    (tmp_path / "logs_only" / "config.yaml").write_text("arms: [start]\n")
    assert "no scripted human" in refuse("chat", "logs_only", "--with", "human")


@pytest.mark.parametrize(
    ("place", "told"),
    [("/proc/nobody/x.png", "cannot be written"), (".", "is a folder: name a file"), ("", "is no name"),
     ("file/x.png", "cannot be written"), ("x" * 300 + "/x.png", "cannot be written")],
)  # fmt: skip
def test_places_for_results_are_looked_at_before_the_work(place: str, told: str, refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for job, arguments in (
        ("curves", ["run", "--out"]), ("measure_shift", ["logs", "--out"]), ("benchmark", ["--cpu", "--out"]),
        ("plan", [MICRO, "--picture"]), ("plan", [MICRO, "--out"]), ("chaos", ["--out"]),
    ):  # fmt: skip
        assert told in refuse(job, *arguments, place)
    if place.endswith(".png"):
        assert "argument --runs: " in refuse("compare", MICRO, "--runs", place)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_a_job_would_pass_over_is_refused(refuse, tmp_path: Path) -> None:
    assert "its name must end in .png, .svg or .pdf" in refuse("curves", "run", "--out", "x.nope")
    assert "its name must end in .json" in refuse("validate_theory", "--out", "x.png")
    assert "'' is no name: name a folder" in refuse("compare", MICRO, "--runs", "")
    assert "another setting of a run is for a live simulator" in refuse("measure_shift", "logs", "--set", "seeds=[1]")
    assert "a number of draws is for a live simulator" in refuse("measure_shift", "logs", "others", "--draws", "2")
    assert "no sentence encoder 'nope'" in refuse("measure_shift", "logs", "--encoder", "nope")
    assert "no estimator was named" in refuse("measure_shift", "logs", "--estimators", ",")
    assert "required: config (" in refuse("compare")


def test_names_that_no_file_can_have_are_told_in_a_line(refuse, saved: Path) -> None:
    name = "x" * 300
    for job, *arguments in (
        ("compare", name), ("compare", MICRO, f"{name}.yaml"), ("evaluate", name), ("audit", name), ("chat", name),
        ("curves", name, "--out", "x.png"), ("measure_shift", name), ("logs", "check", name),
        ("plan", MICRO, "--run", name), ("train", MICRO, f"task={name}:Mine"), ("train", MICRO, f"task={name}.py:Mine"),
        ("calibrate", MICRO, "name=" + "/".join(["y" * 90] * 60)),
    ):  # fmt: skip
        assert "too long" in refuse(job, *arguments)


def test_calibrate_refuses(refuse, saved: Path) -> None:
    assert "there is no config file nowhere.yaml" in refuse("calibrate", "nowhere.yaml")
    assert "did you mean 'calibration.every'" in refuse("calibrate", MICRO, "calibration.evry=3")
    other = refuse("calibrate", MICRO, "name=small", "--runs", saved.parent)
    assert "begun with other settings" in other and "logs.calibration" in other and "seeds" not in other


def test_saved_run(saved: Path) -> None:
    run = open_run(saved, ["evaluation.shifted=7"])
    assert [policy.name for policy in run.policies] == ["start-0", "calibrated-10"]
    assert run.policy().name == "calibrated-10" and run.policy("start-0").result == {"updates": 0}
    assert run.changed == ["evaluation.shifted"] and run.config.evaluation.shifted == 7
    assert open_run(saved).changed == []
    changed = ["logs.held_out", "policy.sampling.temperature"]
    other = load_config(saved / "config.yaml", ["policy.sampling.temperature=0.5", "logs.held_out=6"], saved=True)
    assert changed_settings(open_run(saved).config, other) == changed


def test_differences_name_setting_and_people() -> None:
    def scores(reward: float, *people: str) -> dict[str, object]:
        figures = {figure: dict.fromkeys(people, 1.0) for figure in ("success", "turns")}
        return {"held_out": figures | {"reward": dict.fromkeys(people, 0.5) | {"a": reward}, "endings": {"left": 1.0}}}

    assert differences(scores(0.1, "a", "b"), scores(0.1, "a", "b")) == []
    assert differences(scores(0.1, "a", "b"), scores(0.2, "a", "b")) == ["held_out: 1 of 2 scenarios"]
    assert differences(scores(0.1, "a", "b"), scores(0.1, "a")) == ["held_out: other scenarios"]
    in_training: Any = scores(0.1, "a", "b")
    in_training["held_out"]["exploitation"] = {"a": 0.5, "b": 0.5}
    assert differences(scores(0.1, "a", "b"), in_training) == [], "measured where the arm's simulator runs"


def test_a_person_speaks_until_it_stops() -> None:
    lines = iter(["table for two", None])
    person = HumanUser(lambda: next(lines))
    expected = Turn(side=Side.USER, text="table for two", source=Source.HUMAN)
    assert asyncio.run(person.say([])) == expected and not person.stopped
    assert asyncio.run(person.say([])) is None and person.stopped
