"""Who says what a dialogue was worth, beside the task: judges, and how far they agree with people."""
