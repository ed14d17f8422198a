"""Persuasion for Good: one person talks another into a donation; real people, and real money as the outcome."""

from calibrated_rl.examples.persuasion_for_good.reader import PersuasionLogs
from calibrated_rl.examples.persuasion_for_good.task import PersuasionForGood

__all__ = ["PersuasionForGood", "PersuasionLogs"]
