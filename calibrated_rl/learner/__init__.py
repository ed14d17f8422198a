"""The learner: packing, losses, DeepSpeed ranks in Ray actors."""
