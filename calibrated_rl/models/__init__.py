"""Finding, creating and checking the models that a run starts with."""
