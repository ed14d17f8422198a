"""Names of the models that the learner can load."""

POLICY, SIMULATOR, PROXY = "policy", "simulator", "proxy"
START = "start"
"""The frozen warm-started policy: reference of the policy, and estimate of the logged policy."""
CRITIC = "critic"
"""The policy's critic, a model with a value head that is trained beside it."""


def critic_slot(number: int) -> str:
    """Name of the frozen model ``number`` of those that value turns."""
    return f"{CRITIC}-{number}"
