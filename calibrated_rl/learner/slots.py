"""Names of the models that the learner holds."""

POLICY, SIMULATOR, PROXY = "policy", "simulator", "proxy"
START = "start"
"""The frozen warm-started policy: reference of the policy, and stand-in for the policy that was logged."""
