"""What the classifier two-sample tests between people and a simulator share: features, cross-fitting, null bands."""
