"""The exact world, in which shifts and values can be computed, and the validation of the theory on it."""
