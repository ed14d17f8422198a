"""The folders of a run."""

from pathlib import Path

from calibrated_rl.errors import UserError

POLICIES = "policies"
"""The trained policies, ARM-SEED, in Hugging Face format."""
CHECKPOINTS = "checkpoints"
"""Checkpoints of arms in training, ARM-SEED/update-N, until the arm is done."""


def refuse_old_layout(run: Path) -> None:
    """Versions before 0.2 had the policies in ``checkpoints`` and the checkpoints in ``resume``.

    Raises:
        UserError: the run folder is of such a version; says how it is brought up to date.
    """
    if (run / "resume").is_dir() or any((run / CHECKPOINTS).glob("*/config.json")):
        raise UserError(
            f"{run} was written by an earlier version. To bring it up to date: cd {run}; mv checkpoints policies; "
            "test ! -d resume || mv resume checkpoints"
        )
