"""vLLM's engine, in a process of its own or in a thread."""
