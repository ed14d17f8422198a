"""A run folder with models that nobody trained: what serving reads of a run, in a second."""

from pathlib import Path

from calibrated_rl.config.load import load_config, to_yaml
from calibrated_rl.data.dialogue import Split
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.storage.checksums import write_checksums
from calibrated_rl.tasks.checked import build_task
from tests.support.paths import MICRO

POLICIES = ("calibrated-0", "static-0")
SIMULATORS = ("calibrated", "uncalibrated")


def make_run(folder: Path, *changes: str) -> Path:
    """A run of ``micro.yaml`` in ``folder``, whose models share a tokenizer and have random weights of their own."""
    config = load_config(MICRO, [f"name={folder.name}", "date=2026-01-02", *changes])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    task = build_task(config.task, config.task_config, "task_config")
    scenarios = task.scenarios(Split.HELD_OUT, 20)
    texts = [text for each in scenarios for text in (each.policy_instructions, each.user_instructions, each.greeting)]
    texts = [*texts, *texts]
    places = [*(f"policies/{name}" for name in POLICIES), *(f"models/{name}" for name in SIMULATORS)]
    for seed, place in enumerate(places):
        write_checksums(make_tiny(folder / place, texts, seed, vocab_size=400, layers=1))
    return folder
