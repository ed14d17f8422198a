"""Tasks: scenarios, what each side is told, rewards and endings; one file a task."""
