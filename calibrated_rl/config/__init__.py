"""The configuration of a whole run: composed of the parts' own configs, read from YAML, checked before anything starts."""
