"""Where dialogues are kept: one Arrow schema, durable segments, groups that are handed out once."""

from calibrated_rl.replay.schema import FORMAT_VERSION, SCHEMA, from_table, to_table
from calibrated_rl.replay.store import ReplayStore

__all__ = ["FORMAT_VERSION", "SCHEMA", "ReplayStore", "from_table", "to_table"]
