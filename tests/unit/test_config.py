"""Config errors end with one line that names key, place and nearest key, before anything starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.config.without_effect import settings_without_effect
from calibrated_rl.errors import UserError
from tests.support.paths import CONFIGS, ROOT


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("trainin: {updates: 3}", "training"),
        ("training: {updatez: 3}", "training.updates"),
        ("training: {updates: many}", "training.updates"),
        ("arms: [calibratd]", "calibrated"),
        ("arms: [oracle]", "scripted human"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=expected):
        load_config(file)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_shipped_configs_load_with_an_effect_of_each_setting_and_are_written_as_they_are(file: Path) -> None:
    config = load_config(file)
    assert list(settings_without_effect(config)) == []
    assert to_yaml(config) == OmegaConf.to_yaml(OmegaConf.structured(config))  # without secrets


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["policy.scaling.maximum=2"], "policy.scaling .*deterministic"),
        (["deterministic=false", "simulator.scaling.minimum=2"], "simulator.replicas is 1"),
        (["deterministic=false", "policy.replicas=3", "policy.scaling.maximum=2"], "policy.replicas is 3"),
        (["policy.replicas=0"], "policy.replicas is 0"),
        (["deterministic=false", "policy.scaling.margin=2"], "margin"),
        (["policy.scaling.maximun=2"], "policy.scaling.maximum"),
    ],
)
def test_replicas_that_contradict_each_other_are_refused(changes: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_config(ROOT / "configs/dev.yaml", changes)


def test_replicas_are_fixed_unless_scaling_says_otherwise() -> None:
    fixed = load_config(ROOT / "configs/dev.yaml", ["policy.replicas=3"])
    assert fixed.policy.replica_bounds == (3, 3) and fixed.simulator.replica_bounds == (1, 1)
    cluster = load_config(ROOT / "configs/dev.yaml", [str(ROOT / "calibrated_rl/config/hardware/cluster.yaml")])
    assert cluster.policy.replica_bounds == (1, 4) and not cluster.deterministic


def test_override_wins() -> None:
    assert load_config(ROOT / "configs/dev.yaml", ["training.updates=7"]).training.updates == 7


@pytest.mark.slow
def test_job_exits_with_code_2(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("trainin: {}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs/compare.py"), str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error:") and "training" in done.stderr


def test_a_value_that_is_no_yaml_is_named() -> None:
    with pytest.raises(UserError, match="command line: 'training.loss_config={a:{b:1}}' is not key=value"):
        load_config(ROOT / "configs" / "dev.yaml", ["training.loss_config={a:{b:1}}"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seeds=[1]", []),
        ("human_config.cooperativeness=0.5", ["human_config"]),
        ("pretraining.human_config.cooperativeness=0.5", ["pretraining.human_config"]),
        ("pretraining.logs.monitor=10", ["pretraining.logs"]),
        ("proxy.sft.epochs=7", ["proxy.sft"]),
        ("proxy.engine.threads=2", []),
    ],
)
def test_settings_that_nobody_reads_are_told(change: str, expected: list[str]) -> None:
    lines = settings_without_effect(load_config(ROOT / "configs/casino.yaml", [change]))
    assert [line.split(" has no effect")[0] for line in lines] == expected
