"""Measurements that are kept: each run writes a dated pair of files into docs/benchmarks."""
