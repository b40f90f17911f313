"""Models on benchmarks: scores, intervals, comparisons."""
