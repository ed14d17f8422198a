"""Progress output of the functions of this folder."""

import logging

from calibrated_rl.runtime import console


def show_progress(*, details: bool = False) -> None:
    """Print the progress of calls from here on, with the seconds since now, as the jobs do. Without it only
    warnings are printed, unless the program sets up logging of its own (the loggers below ``calibrated_rl``).

    Args:
        details: print details, too, and the output of third-party libraries.
    """
    console.configure(logging.DEBUG if details else logging.INFO)
