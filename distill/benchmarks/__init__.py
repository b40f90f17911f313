"""Benchmarks, one per module: `load` returns the problems, `grade` grades a completion."""
