"""Ray's own autoscaler at work on one machine: it adds and removes local nodes while a job trains."""
