"""One file a loss; ``base`` has the contract."""
