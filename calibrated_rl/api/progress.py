"""What calls tell while they go on."""

import logging

from calibrated_rl.runtime import console


def show_progress(*, details: bool = False) -> None:
    """Print from here on what calls do as they go on, with the seconds since now, as the jobs do. Without it only
    warnings are printed, unless the program sets up logging of its own (the loggers below ``calibrated_rl``).

    Args:
        details: print details, too, and what the libraries below print of themselves.
    """
    console.configure(logging.DEBUG if details else logging.INFO)
