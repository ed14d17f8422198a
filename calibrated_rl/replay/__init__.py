"""The store of dialogues: one Arrow schema, durable segments, groups that are handed out once."""
