"""Entry points; each runs with ``python jobs/NAME.py`` and with ``ray job submit -- python jobs/NAME.py``."""
