"""The memory of a model by its shape alone: against sums by hand, DeepSpeed's estimates and vLLM's pages."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.models.shape import ModelShape, shape_of
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.run.memory import GIB, dialogue_bytes
from calibrated_rl.run.memory_plan import GPU_ENGINE
from tests.support.paths import ROOT
from tools.plan.shape import engine_rows, learner_rows, read_shape, usable

BFLOAT16 = LearnerConfig(dtype="bfloat16", gradient_checkpointing=True)
SHAPE = ModelShape(
    parameters=1_000_000, layers=4, hidden=64, intermediate=256, heads=8, key_heads=2, keys=16, vocabulary=500
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelShape]:
    return {name: read_shape(name, tmp_path_factory.mktemp(name)) for name in ("7b", "70b")}


@pytest.mark.slow
def test_shapes_by_name_are_those_of_real_models(known: dict[str, ModelShape]) -> None:
    """Qwen2.5-7B has 7,615,616,512 parameters, Llama-3-70B 70,553,706,496."""
    assert known["7b"].parameters == 7_615_616_512 and known["7b"].keys == 4 * 128
    assert known["70b"].parameters == 70_553_706_496 and known["70b"].keys == 8 * 128


def test_a_config_without_weights_says_the_same_as_the_weights(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", ["which day ?"] * 20, 0, tied=False)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_bytes((folder / "config.json").read_bytes())
    found, of_weights = read_shape(str(tmp_path / "alone"), tmp_path), shape_of(folder)
    # The file has a header of names beside the weights.
    assert 0 <= of_weights.parameters - found.parameters < 1000
    assert replace(found, parameters=0) == replace(of_weights, parameters=0)
    assert read_shape(str(tmp_path / "alone" / "config.json"), tmp_path) == found


def test_a_learner_by_hand() -> None:
    rows = {(row.lora, row.stage): row for row in learner_rows(BFLOAT16, SHAPE, 4)}
    # Two models; of one at a time the gradients are summed in float32. Bytes a parameter and rank.
    million = SHAPE.parameters
    assert rows[False, 0].models == million * (2 * (2 + 2 + 12) + 4)
    assert rows[False, 1].models == million * (2 * (2 + 2 + 12 / 4) + 4)
    assert rows[False, 2].models == million * (2 * (2 + 2 / 4 + 12 / 4) + 4 / 4)
    assert rows[False, 3].models == million * (2 * (2 / 4 + 2 / 4 + 12 / 4) + 4 / 4)
    assert rows[True, 0].models == million * 2 * 2 and rows[True, 3].models == million * 2 * 2 / 4
    assert {row.frozen for row in rows.values()} == {2 * million}
    assert all(row.total == row.models + row.frozen + row.micro_batch for row in rows.values())


def test_engines_by_hand() -> None:
    one, two, four, eight = engine_rows(EngineConfig(dtype="bfloat16", max_model_len=1024), SHAPE, 8, 80 * GIB)
    assert (one.weights, two.weights, eight.weights) == (2_000_000, 1_000_000, 250_000)
    # Keys and values of 4 layers, 16 numbers each of 2 bytes; two key heads, so no rank has less than one.
    assert (
        one.dialogue == 2 * 4 * 16 * 2 * 1024 and two.dialogue == four.dialogue == eight.dialogue == one.dialogue // 2
    )
    assert one.cache == usable(80 * GIB) - 2_000_000 - GPU_ENGINE
    assert one.dialogues == one.cache // one.dialogue and replace(one, cache=-5).dialogues == 0
    assert [row.tensor_parallel for row in engine_rows(EngineConfig(), replace(SHAPE, heads=6), 8, GIB)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_deepspeed_estimates_the_same(known: dict[str, ModelShape], gpus: int) -> None:
    """For one trained model. Its estimate for ZeRO 3 leaves out gradients in bfloat16 and adds the largest layer."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    for model in known.values():
        rows = {row.stage: row for row in learner_rows(BFLOAT16, model, gpus) if not row.lora}
        sums = {2: 4 * model.parameters / gpus, 3: 4 * model.parameters / gpus}
        ours = {stage: (rows[stage].models - sums[stage]) / 2 + sums[stage] for stage in sums}
        _, theirs = estimate_zero2_model_states_mem_needs(model.parameters, gpus, cpu_offload=False)
        assert ours[2] == pytest.approx(theirs, rel=1e-6)
        largest = model.vocabulary * model.hidden
        _, theirs, _ = estimate_zero3_model_states_mem_needs(model.parameters, largest, gpus, cpu_offload=False)
        assert ours[3] - 2 * model.parameters / gpus == pytest.approx(theirs - 4 * largest, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_vllm_reserves_the_same_for_a_dialogue(known: dict[str, ModelShape], ranks: int) -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for model in known.values():
        engine = EngineConfig(dtype="bfloat16", max_model_len=4096, tensor_parallel=ranks)
        page = FullAttentionSpec(
            block_size=16, num_kv_heads=model.key_heads // ranks, head_size=128, dtype=torch.bfloat16
        ).page_size_bytes
        assert dialogue_bytes(engine, model) == model.layers * page * (4096 // 16)


@pytest.mark.slow
def test_the_command_prints_a_plan_or_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def plan(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / "plan.py"), run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    code, out, err = plan("--shape", "70b", "--gpus", "64", "--gpu-memory=141", "policy.engine.max_model_len=8192")
    assert code == 0, err
    assert out.startswith("70b: 70.55 B parameters") and "dialogues of at most 8192 tokens" in out
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    cases = {"transformers": ("--shape", str(tmp_path)), "dtype": ("--shape", "7b", "learner.dtype=half")}
    for message, wrong in cases.items():
        code, out, err = plan(*wrong)
        assert code == 2 and out == "" and message in err and "Traceback" not in err


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_shape(str(tmp_path / "nothing.json"), tmp_path)
