"""Tests of parts with Ray, inference engines, ranks of the learner or processes of their own."""
