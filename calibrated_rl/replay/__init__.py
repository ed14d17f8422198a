"""Where dialogues are kept: one Arrow schema, durable segments, groups that are handed out once."""
