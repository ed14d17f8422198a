"""Unit tests, tests of parts that need Ray, engines or processes, and tests of whole jobs."""
