"""The HTML page and the plain-text table of a run."""
