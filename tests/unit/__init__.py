"""No engine, no Ray, no ranks of a learner; the few tests that start one or a process carry a mark."""
