"""Evaluate models on benchmarks: scores, confidence intervals, comparisons."""
