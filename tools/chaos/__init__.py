"""Faults injected into a running job, and the count of what was lost."""
