"""Deal or No Deal: real negotiations over books, hats and balls, each of which stands in the logs from both seats."""

from calibrated_rl.examples.deal_or_no_deal.people import AgreeableNegotiator
from calibrated_rl.examples.deal_or_no_deal.reader import DealLogs
from calibrated_rl.examples.deal_or_no_deal.task import DealOrNoDeal

__all__ = ["AgreeableNegotiator", "DealLogs", "DealOrNoDeal"]
