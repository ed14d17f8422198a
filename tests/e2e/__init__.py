"""Tests of whole jobs: compare, resume, submit."""
