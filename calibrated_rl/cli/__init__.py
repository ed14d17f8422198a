"""The command line: one file a subcommand of ``calibrated-rl``; ``jobs/`` has an entry point for each."""
