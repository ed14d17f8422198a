"""Names of the models that the learner can load."""

POLICY, SIMULATOR, PROXY = "policy", "simulator", "proxy"
START = "start"
"""The frozen warm-started policy: reference of the policy, and estimate of the logged policy."""
SIMULATOR_REFERENCE = "simulator_reference"
"""The frozen simulator that reinforcement learning of the simulator is held near to."""
