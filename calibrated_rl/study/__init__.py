"""Comparing arms over seeds, with side experiments that take over what no setting bears on."""
