"""What an endpoint can answer instead of an answer."""

from calibrated_rl.errors import UserError


class EndpointStopped(UserError):
    """Further requests make no sense until somebody has done something. An arm in training keeps a checkpoint, the run
    ends, and the same command resumes; what was answered is not paid twice."""


class BudgetSpent(EndpointStopped):
    """The next request could cost more than is left of the budget."""


class Unanswered(Exception):
    """A try without a usable answer, that may succeed when it is repeated."""

    def __init__(self, cause: str, wait_s: float | None = None) -> None:
        """
        Args:
            cause: a few words, under which it is counted.
            wait_s: how long the server asks to wait; None: it does not say.
        """
        super().__init__(cause)
        self.cause, self.wait_s = cause, wait_s


class Refused(Exception):
    """The server will never answer this request, though it may answer others."""

    def __init__(self, cause: str, details: str) -> None:
        """
        Args:
            cause: a few words, under which it is counted.
            details: what the server says.
        """
        super().__init__(f"{cause}: {details}")
        self.cause = cause
