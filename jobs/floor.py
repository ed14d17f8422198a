"""Entry point for ``python`` and ``ray job submit``: the job is ``tools/claims/floor.py``."""

from calibrated_rl.cli.command import run
from tools.claims.floor import main

if __name__ == "__main__":
    run(main)
