"""How healthy a simulator is: mistakes that only a model makes which stands for a person, counted turn by turn."""
