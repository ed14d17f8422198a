"""From text to token ids and back: chat templates, masks, reasoning, text that must stay plain."""
