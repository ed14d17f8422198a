"""How far each part is from what limits it: one file a row, named in configs/benchmarks/{cpu,gpu}.yaml."""
