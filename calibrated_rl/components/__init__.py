"""Parts that users name by import path: found, built, and held to their protocols at every call."""
