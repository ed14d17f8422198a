"""``python -m calibrated_rl`` is ``calibrated-rl``."""

from calibrated_rl.cli.main import main

if __name__ == "__main__":
    main()
