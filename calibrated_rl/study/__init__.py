"""Comparing arms over seeds, with side experiments that reuse what their settings do not change."""
