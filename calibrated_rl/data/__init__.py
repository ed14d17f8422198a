"""The data of a dialogue, without Ray, engines or models."""
