"""Settings of the replay store."""

from dataclasses import dataclass, field
from typing import Annotated

from calibrated_rl.settings.fields import Name, Range


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Where the store runs."""

    cpus: Annotated[float, Range(at_least=0)] = 0.0
    """Ray CPUs that it reserves. It uses little: it writes what it gets to disk."""
    labels: dict[Name, Name] = field(default_factory=dict)
    """Labels of the Ray machines that it may run on, such as ``part: learner``; these must share the run's folder with
    the driver's machine. None: it runs on that."""
