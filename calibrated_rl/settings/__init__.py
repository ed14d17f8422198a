"""Settings as annotated dataclass fields: their ranges and choices, read from YAML, secrets masked."""
