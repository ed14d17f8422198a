"""vLLM engines in Ray actors, and the pools of replicas that serve them."""
