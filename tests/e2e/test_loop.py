"""The whole loop with real engines, learner and store; task, people and calibration method come from a file outside
the repository. One study serves all tests: a run that was killed ends as it did, to the last bit."""

import gzip
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM

import calibrated_rl as crl
from calibrated_rl.errors import UserError
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.storage.run_copy import RunCopy
from tests.support.paths import MICRO, ROOT
from tests.support.s3_server import S3Server

CONTROLS = ("cloned", "calibrated_more_logs", "calibrated_on_policy")  # calibrated_once: the variant

OUTSIDE = """
from calibrated_rl.arms.interactive import Interactive
from calibrated_rl.calibration.plain import PlainSFT
from calibrated_rl.config.arms import ArmStyle
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.examples.front_desk.human import FrontDeskHuman

class Counter(FrontDesk):
    def __init__(self, config):
        super().__init__(config)
        self.name = "counter"

class Guest(FrontDeskHuman):
    pass

class Curious(Interactive):
    name = "curious"
    style = ArmStyle("curious", "from a file outside the repository", "#123456", "p")
    compared_with = ("start",)

class HalfOfTheLogs(PlainSFT):
    def samples_to_fit(self, inputs):
        samples, monitor, metrics = super().samples_to_fit(inputs)
        return samples[::2], monitor, metrics | {"left_out": len(samples) - len(samples[::2])}
"""

STUDY = f"""
training: {{checkpoint_every: 1}}
control_arms: [{", ".join(CONTROLS)}]
variants:
  placebo:
    arms: [calibrated_once]
    change:
    - calibration.source=pretraining
    - calibration.method=calibrated_rl.calibration.ensemble:EnsembleSFT
    - "calibration.method_config={{members: 2, penalty: 0.1}}"
    - training.updates=2
    - shift.every=0
    - evaluation.profile=12
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    (folder / "outside_task.py").write_text(OUTSIDE)
    (folder / "study.yaml").write_text(STUDY)
    return folder


def command(outside: Path, runs: Path, *changes: str) -> list[str]:
    task = f"task={outside / 'outside_task.py'}:Counter"
    return [str(ROOT / "jobs/compare.py"), str(MICRO), *changes, task, "--runs", str(runs), "--hardware", "cpu"]


def run(outside: Path, runs: Path, *changes: str) -> Path:
    done = subprocess.run(
        [sys.executable, *command(outside, runs, *changes)], capture_output=True, text=True, timeout=1800, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (runs / "printed.txt").write_text(done.stdout + done.stderr)
    return runs / "micro"


@pytest.fixture(scope="module")
def study(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with arms, controls and a side experiment."""
    guest = f"human={outside / 'outside_task.py'}:Guest"
    return run(outside, tmp_path_factory.mktemp("study"), str(outside / "study.yaml"), guest)


@pytest.mark.timeout(2100)
def test_every_part_leaves_what_it_should(study: Path) -> None:
    summary = json.loads((study / "summary.json").read_text())
    arms = summary["arms"]
    assert set(arms) == {"start", "static", "interactive", "calibrated", "oracle", *CONTROLS}
    assert summary["task"] == "counter"
    assert arms["calibrated"]["updates"] == 2
    assert arms["calibrated"]["user_tokens"] > 0 and arms["calibrated"]["human_turns"] == 0
    assert arms["oracle"]["human_turns"] > 0
    assert arms["calibrated_more_logs"]["human_turns"] == arms["calibrated_on_policy"]["human_turns"] == 10
    budgets = [arms[arm]["policy_tokens"] for arm in arms if arm != "start"]
    assert min(budgets) > 0.3 * max(budgets), f"budgets differ: {budgets}"
    assert set(summary["variants"]["placebo"]["arms"]) == {"calibrated_once"}
    ensemble = study / "variants" / "placebo"
    assert {path.parent.name for path in ensemble.glob("models/calibrated/*/config.json")} == {"member-0", "member-1"}
    metrics = json.loads((ensemble / "arms" / "calibrated_once-0.json").read_text())["metrics"]
    disagreements = {m["update"]: m["value"] for m in metrics if m["name"] == "simulator_disagreement"}
    assert disagreements.keys() == {0, 1} and all(-5 < value < math.log(2) for value in disagreements.values())
    assert [record["update"] for record in arms["calibrated"]["shift"]] == [0, 2]
    for arm in ("interactive", "calibrated"):
        last = arms[arm]["shift"][-1]
        assert last["bound"]["mean"] > 0 and last["refused"] == {} and -2 < last["exploitation"]["mean"] < 2
    found = json.loads((study / "arms" / "interactive-0.json").read_text())["metrics"]
    last_update = {metric["name"]: metric["value"] for metric in found if metric["update"] == 1}
    most = last_update["groups_requested"] * 4 * last_update["seconds_rollout"]
    assert 0 < last_update["seconds_in_turns_policy"] + last_update["seconds_in_turns_simulator"] <= most
    assert arms["static"]["shift"][-1]["simulator"] is None and arms["static"]["shift"][-1]["policy"]["mean"] > 0
    transfer = summary["shift"]["transfer"]
    assert transfer["all"]["policies"] == 2 * (len(transfer) - 1) and "calibrated" in transfer
    assert summary["shift"]["arm"] == "calibrated" and len(summary["shift"]["exploitation"]) == 2
    for when in ("before", "after"):
        found = summary["simulator"][when]
        assert 0 <= found["exact_tv"]["mean"] <= 1 and 0 <= found["ending_ece"]["mean"] <= 1
        replies = sum(row["count"] for row in found["nll_per_byte"]["by_turn"])
        # A simulator fitted to so few logs may say nothing in every try at a history, which is then left out.
        assert 0.9 * replies <= sum(point["count"] for point in found["ending_curve"]) <= replies
        assert {"similarity_total", "coverage", "wasserstein_user_turns"} <= set(found["populations"]["figures"])
    assert (study / "report.html").stat().st_size > 10_000
    assert list((study / "tensorboard" / "calibrated-0").glob("events*"))
    AutoModelForCausalLM.from_pretrained(study / "policies" / "calibrated-0")
    segments = sorted((study / "replay").rglob("*.arrow"))
    rows = sum(pa.ipc.open_file(str(segment)).read_all().num_rows for segment in segments)
    assert rows > 100


@pytest.mark.timeout(2100)
def test_the_summary_is_written_again_without_engines(outside: Path, study: Path, tmp_path: Path) -> None:
    """As after a run that was stopped between its last arm and its summary."""
    shutil.copytree(study, tmp_path / "micro")
    (tmp_path / "micro" / "summary.json").unlink()
    folder = run(outside, tmp_path, str(outside / "study.yaml"), f"human={outside / 'outside_task.py'}:Guest")
    assert "starting two vLLM engines" not in (tmp_path / "printed.txt").read_text()
    was, now = (json.loads((each / "summary.json").read_text()) for each in (study, folder))
    assert was == now


def measure_shift(study: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What the command prints and writes."""
    out = study.parent / "shift.json"
    command = [sys.executable, str(ROOT / "jobs/measure_shift.py"), *arguments, "--out", str(out), "--limit", "16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, json.loads(out.read_text())


@pytest.mark.timeout(2100)
def test_humans_are_asked_where_simulators_disagree_and_their_replies_are_logs(study: Path, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    command = [sys.executable, str(ROOT / "jobs/ask.py"), str(study), "--count", "6", "--out", str(file), "--answer"]
    done = subprocess.run([*command, "--draws", "2"], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "simulators: calibrated-0-1, calibrated; they disagree by" in done.stdout
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == 6
    assert all(line["asked"] and line["turns"][-1]["side"] == "user" and line["turns"][-1]["text"] for line in lines)
    again = subprocess.run(command, capture_output=True, text=True, timeout=360, cwd=ROOT)
    assert again.returncode == 2 and "exists, and humans may have replied in it" in again.stderr
    elsewhere = [*command[:-2], str(tmp_path / "random.jsonl"), "--at-random", "--arm", "calibrated-0"]
    assert subprocess.run(elsewhere, capture_output=True, timeout=360, cwd=ROOT).returncode == 0
    chosen = (json.loads(line) for line in (tmp_path / "random.jsonl").read_text().splitlines())
    assert all(line["turns"][-1]["text"] == "" for line in chosen)


@pytest.mark.timeout(2100)
def test_a_live_simulator_is_compared_with_the_people_of_the_logs(study: Path) -> None:
    names = ("--estimators", "words,lengths,similarity")
    printed, found = measure_shift(study, f"{study}@logs/held_out", f"{study}:uncalibrated", *names)
    # A simulator fitted to so few logs breaks some dialogues in every try: these are dropped, not scored.
    assert found["reference"]["dialogues"] == 16 and 10 <= found["compared"]["dialogues"] <= 16
    assert found["matched_replies"] > 16 and "words_tv" in found["estimates"] and "similarity_total" in printed
    assert found["estimates"]["nll_per_byte"]["mean"] > 0 and 0 <= found["estimates"]["ending_ece"]["mean"] <= 1
    assert "shares of 4 draws" in found["estimates"]["ending_ece"]["notes"][-1]


@pytest.mark.timeout(2100)
def test_two_live_simulators_are_compared_on_held_out_logs(study: Path) -> None:
    names = ("--estimators", "words", "--draws", "1", "--null-halvings", "0")
    _, found = measure_shift(study, f"{study}:calibrated", f"{study}:calibrated", *names)
    # The same simulator with the same random numbers says the same.
    assert found["estimates"]["words_tv"]["mean"] == 0 and found["estimates"]["words_auc"]["mean"] == 0.5
    assert {"nll_per_byte, REFERENCE", "nll_per_byte, COMPARED"} <= set(found["estimates"])
    with pytest.raises(UserError, match="is the second set: LOGS RUN:MODEL"):
        crl.measure_shift(f"{study}:calibrated", f"{study}@logs")
    with pytest.raises(UserError, match="has no model 'blue'; there are uncalibrated, calibrated"):
        crl.measure_shift(f"{study}@logs", f"{study}:blue")


NOTEBOOK = """
import asyncio, json, sys
cells, found = json.load(open(sys.argv[1])), {}

async def run_cells():
    for cell in cells:
        exec(compile(cell, "docs/python_api.md", "exec"), found)

asyncio.run(run_cells())  # as in a notebook, a loop runs in the thread of the cells
arm = found["run"].arms["calibrated"]
told = {"folder": str(found["run"].folder), "agrees": dict(found["again"].agrees), "reward": arm.reward.mean,
        "questions": found["shift"].estimates["questions"].value}
print("TOLD", json.dumps(told))
"""


@pytest.fixture(scope="module")
def from_python(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two of the study's arms by the code of docs/python_api.md, in a small config in place of its own; the run folder
    and what was printed."""
    folder = tmp_path_factory.mktemp("notebook")
    text = (ROOT / "docs" / "python_api.md").read_text()
    cells = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for cell in cells:
        if name := re.match(r"# (\w+\.py)\n", cell):
            (folder / name[1]).write_text(cell)
    talk = {"messages": [{"role": "user", "content": "a table"}, {"role": "assistant", "content": "which day ?"}]}
    (folder / "chats.jsonl.gz").write_bytes(gzip.compress(json.dumps(talk).encode()))
    (folder / "cells.json").write_text(json.dumps([cell for cell in cells if not cell.startswith("# ")]))
    (folder / "notebook.py").write_text(NOTEBOOK)
    (folder / "configs").mkdir()
    file = outside / "outside_task.py"
    config = MICRO.read_text().replace("calibrated_rl.examples.front_desk:FrontDeskHuman", f"{file}:Guest", 1)
    (folder / "configs" / "dev.yaml").write_text(f"{config}task: {file}:Counter\n")
    done = subprocess.run(
        [sys.executable, "notebook.py", "cells.json"], capture_output=True, text=True, timeout=1800, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder / "runs" / "micro", done.stdout


@pytest.mark.timeout(2100)
def test_the_code_of_the_docs_runs_in_a_notebook(from_python: tuple[Path, str]) -> None:
    folder, printed = from_python
    told = json.loads(printed.rpartition("TOLD ")[2])
    summary = json.loads((folder / "summary.json").read_text())
    assert told["folder"] == "runs/micro" and told["agrees"] == {"calibrated-0": True}
    assert told["reward"] == summary["arms"]["calibrated"]["held_out_greedy"]["reward"]["mean"]
    assert -1 <= told["questions"] <= 1 and "did you mean 'training.updates'" in printed
    assert f"report: {folder.resolve() / 'report.html'}" in printed and (folder / "report.html").is_file()


@pytest.mark.timeout(2100)
def test_same_seed_same_figures(study: Path, from_python: tuple[Path, str]) -> None:
    """From Python as from the command line, and with two of its arms alone: what runs before an arm does not change
    it."""
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (study, from_python[0]))
    assert set(second["arms"]) == {"static", "calibrated"}
    assert first["simulator"] == second["simulator"]
    for arm, figures in second["arms"].items():
        assert without_seconds(first["arms"][arm]) == without_seconds(figures), arm
    for pair, difference in second["paired"].items():
        assert first["paired"][pair] == difference, pair


def without_seconds(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "seconds"}


@pytest.mark.timeout(2100)
def test_a_proxy_judges_where_there_is_no_human(outside: Path, study: Path, tmp_path: Path) -> None:
    """And the arm that it judges comes from outside the repository."""
    proxy = study / "models" / "uncalibrated"  # one that speaks as people do: of 46 logs alone it would learn silence
    changes = ("human=''", f"arms=[start,{outside / 'outside_task.py'}:Curious]", "training.updates=1",
               "pretraining.human=''", "shift.every=0", "shift.estimators=[]", "evaluation.scenarios=6")  # fmt: skip
    method = f"calibration.method={outside / 'outside_task.py'}:HalfOfTheLogs"
    folder = run(outside, tmp_path, *changes, method, f"proxy.model={proxy}", "evaluation.shifted=0")
    summary = json.loads((folder / "summary.json").read_text())
    assert "proxy" in summary["held_out_user"]
    assert summary["gap_closed"] == {}
    assert -1 <= summary["arms"]["curious"]["held_out"]["reward"]["mean"] <= 1
    assert set(summary["paired"]) == {"curious-start"} and summary["styles"]["curious"]["color"] == "#123456"
    assert "from a file outside the repository" in (folder / "report.html").read_text()
    assert "exact_tv" not in summary["simulator"]["after"]
    fit = json.loads((folder / "models" / "calibrated" / "fit.json").read_text())
    assert fit["left_out"] > 0 and fit["simulator_monitor_nll"] > 0


DRIVER, LEARNER = "the driver with its machine", "ray::RankActor"


def kill(watcher: int, who: str, run: Path) -> None:
    """Kill an actor of the driver that the process ``watcher`` watches; or the driver, with the run folder: what is
    started again finds an empty one."""
    (driver,) = psutil.Process(watcher).children()
    if who == DRIVER:
        driver.kill()
        run.rename(run.with_name("lost"))
        return
    (actor,) = [p for p in driver.children(recursive=True) if p.cmdline() and p.cmdline()[0].startswith(who)]
    actor.kill()


def killed_run(outside: Path, runs: Path, *changes: str, kills: Sequence[tuple[str, str]]) -> str:
    """Run the job to its end, as soon as it says the words of each of ``kills`` killing whom that names; what it
    printed."""
    watcher = subprocess.Popen(
        [
            sys.executable, "-u", *command(outside, runs, *changes), "--supervise", str(len(kills)),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    assert watcher.stdout is not None
    printed, waiting, deadline = "", list(kills), time.monotonic() + 1800
    try:
        for line in watcher.stdout:
            printed += line
            assert time.monotonic() < deadline, printed[-4000:]
            if waiting and waiting[0][0] in line:
                kill(watcher.pid, waiting.pop(0)[1], runs / "micro")
        code = watcher.wait(timeout=180)
    finally:
        watcher.kill()
    assert code == 0 and not waiting, printed[-4000:]
    return printed


def arm_of(run: Path, arm: str) -> dict[str, Any]:
    """What an arm left, without what a clock says."""
    found = json.loads((run / "arms" / f"{arm}-0.json").read_text())
    found["metrics"] = [m for m in found["metrics"] if not m["name"].startswith("seconds")]
    return without_seconds(found)


def rollouts(run: Path, arm: str) -> str:
    """All that an arm learned from, to the last digit, as text: there NaN is NaN (log-probs of what nobody sampled)."""
    return repr(ReplayStore(run / "replay" / f"{arm}-0").table(kind="rollout").to_pylist())


@pytest.mark.timeout(4500)
def test_a_killed_run_resumes_and_ends_as_one_that_was_not(
    outside: Path, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner is killed before the first checkpoint; the driver in the update after one, with all that lay on its
    machine, so that the run comes back from an S3-compatible store; with people's replies in between."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a-secret-that-nobody-may-see")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    resumed, arm = tmp_path / "micro", "calibrated_on_policy"
    for part in ("models", "replay/logs"):  # what comes before the arms need not be done again
        shutil.copytree(study / part, resumed / part)
    shutil.copy(study / "simulator.json", resumed)
    kills = ((f"{arm} (seed 0) update 1/2", LEARNER), (f"{arm} (seed 0) update 2/2", DRIVER))
    with S3Server() as server:
        address = server.address("runs")
        changes = (f"human={outside / 'outside_task.py'}:Guest", f"arms=[{arm}]", "training.checkpoint_every=1")
        printed = killed_run(outside, tmp_path, *changes, f"training.checkpoint_store='{address}'", kills=kills)
        assert "could not be written" not in printed and printed.count("fetched the run from the store: ") == 1
        assert "a-secret" not in printed and not any(b"a-secret" in content for content in server.objects.values())
        # What is left in the store is the finished run.
        copy = RunCopy(address, "micro", tmp_path / "elsewhere", 2)
        (tmp_path / "elsewhere").mkdir()
        copy.fetch()
        assert (tmp_path / "elsewhere/report.html").read_bytes() == (resumed / "report.html").read_bytes()
    assert printed.count("a learner rank is gone") == 1
    assert printed.count("starting again from the last checkpoint (1 of 3)") == 1
    assert printed.count("the job was killed by SIGKILL; restarting it") == 1
    assert printed.count(f"{arm} (seed 0) update 1/2") == 2
    assert printed.count(f"{arm} (seed 0) resumes after update 1") == 1
    for place in ("policies", "best"):
        one, other = (run / place / f"{arm}-0" / "model.safetensors" for run in (study, resumed))
        assert one.read_bytes() == other.read_bytes(), place
    assert arm_of(study, arm) == arm_of(resumed, arm) and arm_of(study, arm)["human_turns"] == 10
    alignments = arm_of(resumed, arm)["alignments"]
    assert [(alignment["update"], alignment["reason"]) for alignment in alignments] == [(1, "every")]
    assert rollouts(study, arm) == rollouts(resumed, arm)
    assert not (resumed / "checkpoints" / f"{arm}-0").exists()
    best = resumed / "best" / f"{arm}-0"
    AutoModelForCausalLM.from_pretrained(best)
    assert {"tokenizer_config.json", "tokenizer.json"} <= {path.name for path in best.iterdir()}
    audit = subprocess.run([sys.executable, str(ROOT / "jobs/audit.py"), str(resumed)], capture_output=True, text=True)
    assert audit.returncode == 0 and "it adds up" in audit.stdout, audit.stdout + audit.stderr
