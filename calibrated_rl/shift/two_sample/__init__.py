"""Classifier two-sample tests between people and a simulator: one file a family."""
