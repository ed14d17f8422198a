"""Finding, making and checking the models that a run begins with."""
