"""Where things lie, whatever folder a test is in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the repository."""

SHARED = ROOT.parent / "shared"
"""Data beside the checkout; tests that need it are skipped where it is missing."""

CONFIGS = sorted(file for folder in ("configs", "configs/tasks") for file in (ROOT / folder).glob("*.yaml"))
"""Those that are runs by themselves."""

MICRO = Path(__file__).with_name("micro.yaml")
"""The smallest run in which every part is real."""
