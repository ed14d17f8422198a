"""Serving a run's policy and simulator behind OpenAI-compatible endpoints, with a chat page, on Ray Serve."""
