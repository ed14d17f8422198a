"""Errors that are the user's to mend; jobs print them as one line and exit with code 2."""


class UserError(ValueError):
    """The input (a config, a data file, a model, the machine) does not allow what was asked for.

    The message names what is wrong, where, and what to do about it.
    """
