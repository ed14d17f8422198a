"""What people look at: the HTML page and the plain-text table of a run."""
