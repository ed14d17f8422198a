"""Writes docs/reference/config.md: every key of a config, out of the dataclasses themselves."""
