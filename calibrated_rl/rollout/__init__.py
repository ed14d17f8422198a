"""vLLM engines in Ray actors, the pool of replicas, the conversation loop."""
