"""What the classifier two-sample tests between human users and a simulator share: features, cross-fitting, null
bands."""
