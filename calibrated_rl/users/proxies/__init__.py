"""Models that stand for held-out people in evaluation, of other families than policy and simulator."""
