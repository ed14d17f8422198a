"""Small tools around processes: capacity of the cluster, work in the background, progress."""
