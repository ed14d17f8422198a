"""FrontDesk: a booking desk whose callers are exact programs, so that everything about the users can be computed."""

from calibrated_rl.examples.front_desk.human import FrontDeskHuman
from calibrated_rl.examples.front_desk.task import FrontDesk

__all__ = ["FrontDesk", "FrontDeskHuman"]
