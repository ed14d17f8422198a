"""Entry point for ``python`` and ``ray job submit``: the job is ``tools/asking/job.py``."""

from calibrated_rl.cli.command import run
from tools.asking.job import main

if __name__ == "__main__":
    run(main)
