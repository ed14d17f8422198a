"""The arms: one file each, one readable loop that composes the parts. The place to read first."""
