"""What a side experiment takes over from its study, and what it does not."""

from dataclasses import replace
from pathlib import Path

from calibrated_rl.config.load import load_config, variants_of
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.study.inheritance import take_over
from tests.support.paths import ROOT

STUDY = ROOT / "configs" / "frontdesk_study.yaml"
MODELS = ("start", "uncalibrated", "calibrated")


def made_by(folder: Path) -> Path:
    """A run folder with models, a measurement and two arms."""
    for name in (*MODELS, "policy_base", "simulator_base"):
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "fit.json").write_text(name)
    (folder / "simulator.json").write_text("{}")
    for arm in ("interactive-0", "calibrated-0"):
        (folder / "policies" / arm).mkdir(parents=True)
        (folder / "policies" / arm / "weights").write_text(arm)
        (folder / "arms").mkdir(exist_ok=True)
        (folder / "arms" / f"{arm}.json").write_text("{}")
    return folder


def study() -> tuple[RunConfig, dict[str, RunConfig]]:
    return load_config(STUDY), variants_of(load_config(STUDY), STUDY, [])


def test_a_placebo_shares_all_but_what_it_is_aligned_with(tmp_path: Path) -> None:
    config, variants = study()
    source, folder = made_by(tmp_path / "study"), tmp_path / "placebo"
    taken = take_over(source, config, folder, variants["placebo"])
    assert taken == ["models/start", "models/uncalibrated", "interactive-0"]
    assert (folder / "policies" / "interactive-0" / "weights").read_text() == "interactive-0"
    assert not (folder / "models" / "calibrated").exists() and not (folder / "simulator.json").exists()
    assert not (folder / "arms" / "calibrated-0.json").exists()
    assert take_over(source, config, folder, variants["placebo"]) == []


def test_another_pretraining_leaves_only_the_start(tmp_path: Path) -> None:
    config, _ = study()
    folder = tmp_path / "cooperative"
    cooperative = replace(config, pretraining=replace(config.pretraining, human_config={"cooperativeness": 0.5}))
    assert take_over(made_by(tmp_path / "study"), config, folder, cooperative) == ["models/start"]
    assert (folder / "models" / "policy_base").is_dir() and not (folder / "models" / "simulator_base").exists()


def test_another_learning_rate_keeps_all_models_and_no_arm(tmp_path: Path) -> None:
    config, _ = study()
    faster = replace(config, training=replace(config.training, learning_rate=0.5))
    taken = take_over(made_by(tmp_path / "study"), config, tmp_path / "faster", faster)
    assert taken == ["models/start", "models/uncalibrated", "models/calibrated", "simulator.json"]


def test_what_is_not_finished_is_not_taken(tmp_path: Path) -> None:
    config, _ = study()
    source = made_by(tmp_path / "study")
    (source / "models" / "start" / "fit.json").unlink()
    assert "models/start" not in take_over(source, config, tmp_path / "same", config)
