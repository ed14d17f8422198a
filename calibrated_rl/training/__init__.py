"""What one update of an arm is made of: rollout sources, accounting, shift measurement, calibration, checkpoints."""
