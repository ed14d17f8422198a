"""Settings of the replay store."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Where the store runs."""

    cpus: float = 0.0
    """Ray CPUs that it asks for. It takes little: what it is given, it writes to disk."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels of the Ray machines that it may run on, such as ``part: learner``; none: any machine."""
