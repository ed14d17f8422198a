"""Bringing new weights from the learner to the replicas."""
