"""Mistakes end within seconds, with one clear line and exit code 2; a broken log line costs no other line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import TrainingConfig
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.models.shape import ModelShape
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.rollout.context import check_context_fits
from calibrated_rl.run.memory import (
    ENGINE_PROCESSES,
    GIB,
    RANK_OF_AN_ENGINE,
    activations,
    check_cache,
    check_tensor_parallel,
    engine_needs,
    learner_needs,
    memory_needs,
    refuse_too_little,
)
from tests.support.paths import ROOT

SECONDS = 180
"""Most that a refused run may take on a busy machine; engines alone would take as long."""


def run(job: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / job), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=ROOT)


def compare(folder: Path, logs: str, override: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    config = folder / "bad.yaml"
    config.write_text(f"name: bad\narms: [start]\nlogs: {{{logs}}}\n")
    return run("compare.py", config, override, "--hardware", "cpu", "--runs", folder)


SCRIPTED = "reader: calibrated_rl.logs.scripted:ScriptedLogs, calibration: 40, monitor: 1, tuning: 1, held_out: 12"
LINES = "reader: calibrated_rl.logs.jsonl:JsonLines, path: "
CASES = {
    "unknown key": (SCRIPTED, "training.updatez=3", "unknown key 'training.updatez'; did you mean 'training.updates'?"),
    "wrong type": (SCRIPTED, "training.updates=many", "command line: training.updates is 'many': write a whole"),
    "no data file": (LINES + "nowhere.jsonl", "name=bad", "there is no file nowhere.jsonl; wanted is one JSON object"),
    "no chat template": (SCRIPTED, "policy.model={no_template}", "has no chat template"),
    "short model": (SCRIPTED, "simulator.engine.max_model_len=600", "a context of 512 tokens, and the run needs 600"),
    "memory": (SCRIPTED, "policy.engine.kv_cache_mib=4000000", "engine 3907.0 (KV cache 3906.2, processes 0.7)"),
    # One of the lines is broken: the context is judged by those that fit.
    "short engine": (LINES + "{logs}", "policy.engine.max_model_len=20", "is 20 tokens: 37 of 37 calibration logs"),
}
"""What is wrong: the logs of the config, the setting on the command line, and what the last line must say."""


@pytest.fixture(scope="module")
def no_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has lost its chat template."""
    folder = make_tiny(tmp_path_factory.mktemp("model") / "bare", ["friday seven two"] * 4, 0, layers=1)
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues of all splits, and in line 3 one whose turn has no text."""
    file = tmp_path_factory.mktemp("logs") / "mine.jsonl"
    turns = [{"side": "user", "text": "friday seven two"}, {"side": "policy", "text": "booked friday seven two"}]
    lines = [{"id": number, "turns": turns, "split": split} for number, split in enumerate(
        ["calibration"] * 37 + ["monitor", "tuning"] + ["held_out"] * 12
    )]  # fmt: skip
    lines.insert(2, {"id": 99, "turns": [{"side": "user"}]})
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture(scope="module")
def refused(no_template: Path, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The jobs of ``CASES``, two at a time: most of their seconds go into imports."""
    folder = tmp_path_factory.mktemp("refused")
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {
            name: pool.submit(
                compare, folder / name, config.format(logs=logs), override.format(no_template=no_template)
            )
            for name, (config, override, _) in CASES.items()
        }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_mistakes_end_with_one_line(refused: dict[str, Any], name: str) -> None:
    done = refused[name].result(timeout=len(CASES) * SECONDS)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and CASES[name][2] in last


def test_a_broken_log_line_is_named(refused: dict[str, Any], logs: Path) -> None:
    reason = f"{logs}:3: turns[0] is not an object with 'side' and 'text'"
    done = refused["short engine"].result(timeout=len(CASES) * SECONDS)
    assert f"refused: {reason}" in done.stdout + done.stderr
    checked = run("logs.py", "check", logs)
    assert checked.returncode == 1
    told = f"refused: {reason} (it has 'side')", f"{logs}: 51 dialogues with 102 turns fit, 1 refused"
    assert checked.stdout.splitlines()[:2] == list(told)


def test_a_few_long_dialogues_need_not_fit() -> None:
    needed = [100] * 38 + [300, 400]
    check_context_fits("policy", 100, needed)  # 2 of 40 are 5 %
    with pytest.raises(UserError, match="is 99 tokens: 40 of 40 .* 100 would be enough for 95% of them, 400 for all"):
        check_context_fits("policy", 99, needed)


TINY = ModelShape(parameters=1000, layers=2, hidden=8, intermediate=16, heads=2, key_heads=1, keys=4, vocabulary=50)


def test_memory_is_added_up_by_hand() -> None:
    # A layer: 10 * 8 + 5 * 16 + 3 * 4 = 172 numbers a token; logits: 3 copies of 50 float32; two
    # gradients of 50 * 8.
    plain = LearnerConfig(micro_batch_tokens=100)
    assert activations(plain, TINY) == 2 * 172 * 100 * 4 + 3 * 100 * 50 * 4 + 2 * 50 * 8 * 4
    thrifty = LearnerConfig(micro_batch_tokens=100, dtype="bfloat16", gradient_checkpointing=True)
    assert activations(thrifty, TINY) == (172 + 2 * 8) * 100 * 2 + 3 * 100 * 50 * 4 + 2 * 50 * 8 * 2
    # float32: 4 + 4 + 8 bytes a parameter and rank; bfloat16: 2 + 2 + 12, of which ZeRO-2 shares all but the weights.
    models = "models and optimizers"
    assert learner_needs(LearnerConfig(ranks=2), TINY, TINY)[models] == 2 * 2000 * 16
    assert learner_needs(LearnerConfig(ranks=2, zero_stage=2, dtype="bfloat16"), TINY, TINY)[models] == 2000 * (4 + 14)
    # A checkpoint is copied once: weights, two moments and, under bfloat16, the float32 weights.
    for dtype, each in (("float32", 4 + 8), ("bfloat16", 2 + 12)):
        config = RunConfig(learner=LearnerConfig(dtype=dtype))
        assert memory_needs(config, TINY, TINY)["checkpoint"] == {"copy": 1000 * each}
    assert "checkpoint" not in memory_needs(RunConfig(training=TrainingConfig(checkpoint_every=0)), TINY, TINY)
    engine = EngineConfig(dtype="bfloat16", kv_cache_mib=3)
    assert engine_needs(engine, TINY, 2) == {
        "weights": 4000, "KV cache": 6 * 2**20, "new weights": 2 * 2 * 4000, "processes": 2 * ENGINE_PROCESSES
    }  # fmt: skip
    # Two ranks share the weights of a replica and have a cache each; the second is a further process.
    assert engine_needs(replace(engine, tensor_parallel=2), TINY, 2) == {
        "weights": 4000, "KV cache": 12 * 2**20, "new weights": 2 * 2 * 4000,
        "processes": 2 * (ENGINE_PROCESSES + 2 * RANK_OF_AN_ENGINE),
    }  # fmt: skip


def test_the_cache_holds_at_least_one_dialogue() -> None:
    # Keys and values of 2 layers, 4 float32 numbers each: 64 bytes a token, so 16384 tokens fill 1 MiB.
    check_cache("policy", EngineConfig(kv_cache_mib=1, max_model_len=16384), TINY)
    with pytest.raises(UserError, match="simulator.engine.kv_cache_mib is 1: .* 16385 takes 2"):
        check_cache("simulator", EngineConfig(kv_cache_mib=1, max_model_len=16385), TINY)
    # Ranks share the key heads as far as there are some for each.
    check_cache("simulator", EngineConfig(kv_cache_mib=1, max_model_len=16384, tensor_parallel=2), TINY)
    wide = replace(TINY, key_heads=2)
    check_cache("simulator", EngineConfig(kv_cache_mib=1, max_model_len=32768, tensor_parallel=2), wide)
    with pytest.raises(UserError, match="of which each of 2 ranks has"):
        check_cache("simulator", EngineConfig(kv_cache_mib=1, max_model_len=32769, tensor_parallel=2), wide)


def test_heads_are_shared_out_evenly() -> None:
    check_tensor_parallel("policy", EngineConfig(tensor_parallel=2), TINY)
    with pytest.raises(UserError, match="policy.engine.tensor_parallel is 4: the model has 2 attention heads"):
        check_tensor_parallel("policy", EngineConfig(tensor_parallel=4), TINY)
    with pytest.raises(UserError, match="6 attention heads and 2 key heads"):
        check_tensor_parallel("policy", EngineConfig(tensor_parallel=3), replace(TINY, heads=6, key_heads=2))


@pytest.mark.parametrize("wrong", [{"dtype": "float64"}, {"kv_cache_mib": -1}, {"max_model_len": -1}])
def test_engine_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"engine.{next(iter(wrong))} is "):
        EngineConfig(**wrong)


def test_too_little_memory_says_what_for() -> None:
    needs = {"learner": {"models": GIB, "micro-batch": 2 * GIB}, "engine": {"KV cache": 4 * GIB, "weights": 1000}}
    refuse_too_little(needs, 7 * GIB + 1000)
    with pytest.raises(UserError) as refused:
        refuse_too_little(needs, 7 * GIB)
    assert (
        "about 7.0 GiB of memory, and 7.0 GiB are available. "
        "In GiB: engine 4.0 (KV cache 4.0); learner 3.0 (micro-batch 2.0, models 1.0)" in str(refused.value)
    )
