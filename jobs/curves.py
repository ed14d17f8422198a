"""Entry point for ``python`` and ``ray job submit``: the same as ``calibrated-rl curves``."""

from calibrated_rl.cli.command import run
from calibrated_rl.cli.curves import main

if __name__ == "__main__":
    run(main)
