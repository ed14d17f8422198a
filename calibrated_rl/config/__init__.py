"""The configuration of a whole run: composed of the parts' own, read from YAML, checked before anything starts."""
