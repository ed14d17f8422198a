"""What tests share: made-up dialogues, models, replicas, runs and stores; the smallest run's configuration."""
