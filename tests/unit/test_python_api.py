"""``import calibrated_rl``: cheap, whole and typed; and what of its functions needs no engine."""

import ast
import asyncio
import importlib
import inspect
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import calibrated_rl as crl
from calibrated_rl.config import load
from calibrated_rl.runtime import console
from calibrated_rl.runtime.event_loop import run_to_end
from tests.support.paths import MICRO, ROOT

LARGE = ("torch", "ray", "transformers", "vllm", "deepspeed", "numpy", "pyarrow", "omegaconf")


@pytest.mark.slow
def test_to_import_the_package_loads_nothing_large() -> None:
    found = f"[name for name in {LARGE} if name in sys.modules]"
    code = f"import sys, calibrated_rl as crl; dir(crl); print({found}); crl.Task, crl.Turn; print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    at_import, with_a_task = done.stdout.splitlines()
    assert at_import == "[]"
    assert with_a_task == "['numpy']", "a protocol needs no more than the arrays of a dialogue"


@pytest.mark.slow  # every part of the package is loaded
def test_every_public_name_is_what_the_type_checker_sees() -> None:
    tree = ast.parse(inspect.getsource(crl))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == sorted(crl.__all__) == crl.__all__
    for name, module in seen.items():
        assert getattr(crl, name) is getattr(importlib.import_module(str(module)), name), name
    assert set(crl.__all__) <= set(dir(crl))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        getattr(crl, "trian")  # noqa: B009


def test_what_users_write_and_call_is_explained() -> None:
    named = [getattr(crl, name) for name in crl.__all__]
    classes_and_functions = [each for each in named if inspect.isclass(each) or inspect.isfunction(each)]
    assert len(classes_and_functions) > 50
    assert not [each.__name__ for each in classes_and_functions if not inspect.getdoc(each)]


def test_a_config_is_a_file_or_an_object() -> None:
    from_file = crl.load_config(MICRO, ["training.updates=3"])
    assert from_file == crl.load_config(str(MICRO), ("training.updates=3",))
    assert from_file == crl.load_config(from_file)
    changed = crl.load_config(from_file, ["seeds=[1]"])
    assert changed.training.updates == 3 and changed.seeds == [1] and from_file.seeds == [0]
    assert crl.load_config(from_file, hardware="cpu").policy.engine.num_gpus == 0
    with pytest.raises(crl.UserError, match="config: seeds\\[0\\] is -1: it must be at least 0"):
        crl.load_config(replace(from_file, seeds=[-1]))
    with pytest.raises(crl.UserError, match=r"write a list, \['seeds=\[1\]'\]"):
        crl.load_config(MICRO, "seeds=[1]")
    with pytest.raises(crl.UserError, match="hardware is 'gpu': choose auto, cpu, one_gpu or cluster"):
        crl.load_config(MICRO, hardware="gpu")  # type: ignore[arg-type]


def test_variants_of_an_object_are_those_of_its_file(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(MICRO.read_text() + "variants: {more: {arms: [calibrated], change: [training.updates=4]}}\n")
    config = crl.load_config(study)
    assert load.variants_of(config, config, []) == load.variants_of(config, study, [])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: crl.compare("nowhere.yaml"), "there is no config file nowhere.yaml"),
        (lambda: crl.compare(MICRO, ["training.updaets=3"]), "did you mean 'training.updates'"),
        (lambda: crl.compare(MICRO, only="mian", hardware="cpu"), "has no part 'mian'; there are: main"),
        (lambda: crl.train(MICRO, "calibratd"), "arm is 'calibratd': choose"),
        (lambda: crl.evaluate("nowhere"), "there is no run folder nowhere"),
        (lambda: crl.read_run("nowhere"), "there is no run folder nowhere"),
        (lambda: crl.measure_shift("nowhere.jsonl"), "there is no file or folder nowhere.jsonl"),
        (lambda: crl.measure_shift([], limit=-1), "limit is -1: it must be at least 0"),
        (lambda: crl.measure_shift([], estimators=[]), "no estimator was named; there are"),
        (lambda: crl.measure_shift([], estimators="words"), r"write a list, \['words'\]"),
        (lambda: crl.measure_shift([], draws=2), "a number of draws is for a live simulator"),
        (lambda: crl.measure_shift(["hello"], []), "reference contains a str: give dialogues"),  # type: ignore[list-item]
        (lambda: crl.measure_shift([], [], estimators=["lengths"]), "no dialogues on the human side"),
    ],
)  # fmt: skip
def test_mistakes_are_raised_and_end_no_process(call: Any, message: str) -> None:
    with pytest.raises(crl.UserError, match=message):
        call()


def spoken(name: str, *said: str) -> crl.Dialogue:
    """A logged dialogue in which ``said`` are the user's turns."""
    greeting = crl.Turn(side=crl.Side.POLICY, text="Hello!", source=crl.Source.GREETING)
    turns = [greeting]
    for text in said:
        turns += [crl.Turn(side=crl.Side.USER, text=text, source=crl.Source.LOG), greeting]
    scenario = crl.Scenario(
        id=name, split=crl.Split.HELD_OUT, policy_instructions="", user_instructions="", greeting="Hello!"
    )
    return crl.Dialogue(
        id=name, task="", scenario=scenario, turns=tuple(turns), ending="over", outcome=None, kind="log"
    )


def test_dialogues_are_compared_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    people = [spoken(f"p{i}", "a table for two please", f"at {i % 5} please") for i in range(12)]
    others = [spoken(f"o{i}", "table", "no", "yes", "bye") for i in range(12)]
    found = crl.measure_shift(people, others, estimators=["lengths"], null_halvings=2)
    assert capsys.readouterr().out == ""
    assert found.estimates["wasserstein_user_turns"].value == pytest.approx(2)
    assert found.verdict("wasserstein_user_turns") == "apart" and "wasserstein_user_turns" in found.table()
    assert json.loads(json.dumps(found.as_dict()))["estimates"]["wasserstein_user_turns"]["verdict"] == "apart"
    halves = crl.measure_shift(people, estimators=["lengths"], null_halvings=2)
    assert len(halves.reference.dialogues) + len(halves.compared.dialogues) == 12
    assert halves.verdict("wasserstein_user_turns") == "within the null band"


def test_a_finished_run_is_read_as_values(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.yaml").write_text(load.to_yaml(crl.load_config(MICRO)))
    with pytest.raises(crl.UserError, match="small has no summary.json: the run is not finished"):
        crl.read_run(folder)
    reward = {"mean": 0.5, "low": 0.25, "high": 0.75}
    start = {"held_out": {"reward": reward}, "held_out_greedy": {"reward": 0.75}, "updates": 0.0}
    arms = {"start": start, "static": {"updates": 2.0, "seconds": 1.5}}
    summary = {"arms": arms, "paired": {"static-start": {"mean": 1.0, "low": None, "high": None}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = crl.read_run(str(folder))
    assert run.config == crl.load_config(MICRO) and run.report == folder.resolve() / "report.html"
    assert run.arms["start"].reward_sampled == crl.Interval(0.5, 0.25, 0.75) and run.arms["start"].updates == 0
    assert run.arms["start"].reward == crl.Interval(0.75)
    assert run.arms["static"].reward is None and run.arms["static"].seconds == 1.5
    assert run.differences == {"static-start": crl.Interval(1.0)} and "static" in run.table()
    greedy = summary | {"paired_greedy": {"static-start": {"mean": 2.0, "low": 1.0, "high": 3.0}}}
    (folder / "summary.json").write_text(json.dumps(greedy))
    run = crl.read_run(folder)
    assert run.differences == {"static-start": crl.Interval(2.0, 1.0, 3.0)}, "of the policies as they are deployed"
    assert "+2.00 [+1.00, +3.00]" in run.table() and "+1.00" in run.table()
    with pytest.raises(crl.UserError, match="no trained policy yet"):
        run.policy()


def test_progress_is_printed_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("calibrated_rl.training").info("hello")
    assert capsys.readouterr().out == ""
    try:
        crl.show_progress()
        logging.getLogger("calibrated_rl.training").info("hello")
        assert "hello" in capsys.readouterr().out
    finally:
        console.reset()


def test_coroutines_run_where_a_loop_runs_already() -> None:
    """As in a notebook."""

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    async def cell() -> int:
        return run_to_end(answer())

    assert run_to_end(answer()) == asyncio.run(cell()) == 42


def test_what_is_raised_there_is_raised_here() -> None:
    async def fail() -> int:
        raise crl.UserError("no")

    async def cell() -> int:
        return run_to_end(fail())

    with pytest.raises(crl.UserError, match="no"):
        asyncio.run(cell())
