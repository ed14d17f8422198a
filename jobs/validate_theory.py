"""Entry point for ``python`` and ``ray job submit``: the job is ``research/theory/job.py``."""

from calibrated_rl.cli.command import run
from research.theory.job import main

if __name__ == "__main__":
    run(main)
