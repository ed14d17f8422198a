"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl compare``."""

from calibrated_rl.cli.command import run
from calibrated_rl.cli.compare import main

if __name__ == "__main__":
    run(main)
