"""CaSiNo: real negotiations over camping supplies; the human users are known from their logs alone."""

from calibrated_rl.examples.casino.reader import CasinoLogs
from calibrated_rl.examples.casino.task import Casino

__all__ = ["Casino", "CasinoLogs"]
