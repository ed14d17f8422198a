"""Names of the models that the learner can load."""

POLICY, SIMULATOR, PROXY = "policy", "simulator", "proxy"
START = "start"
"""The frozen warm-started policy: reference of the policy, and estimate of the logged policy."""
CRITIC = "critic"
"""A model with a value head; where there are several, ``critic_slot`` has their names."""


def critic_slot(number: int) -> str:
    """Name of the frozen value model ``number``."""
    return f"{CRITIC}-{number}"
