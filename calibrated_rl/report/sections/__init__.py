"""What each section of the report shows, one file a section.

A section is a function ``view(run)`` that reads the run's files into a frozen dataclass, and a template of the same
name in ``templates/`` that turns it into HTML: numbers are chosen here, sentences are written there. The dataclass
names its template. A section without data for a run returns None and is left out; a metric that could have
been measured and was not is None, and the template says ``not measured``.
"""
