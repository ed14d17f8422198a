"""One run: its inputs, its base models, its running cluster, its folder."""
