"""Entry point for ``python`` and ``ray job submit``: the job is ``tools/claims/shift_map.py``."""

from calibrated_rl.cli.command import run
from tools.claims.shift_map import main

if __name__ == "__main__":
    run(main)
