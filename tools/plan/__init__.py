"""What a run will take in time and money: measured updates, a model of them, a cluster with its prices."""
