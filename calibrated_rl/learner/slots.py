"""Names of the models that the learner can load."""

POLICY, SIMULATOR, PROXY = "policy", "simulator", "proxy"
START = "start"
"""The frozen warm-started policy: reference of the policy, and estimate of the logged policy."""
SIMULATOR_REFERENCE = "simulator_reference"
"""The frozen simulator that reinforcement learning of the simulator is held near to."""
CRITIC = "critic"
"""The policy's critic, a model with a value head that is trained beside it."""


def critic_slot(number: int) -> str:
    """Name of the frozen model ``number`` of those that value turns."""
    return f"{CRITIC}-{number}"
