"""Parts that users name by import path: imported, built, and checked against their protocols at every call."""
