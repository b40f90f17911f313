"""Benchmarks, one per module: `load` returns the problems.

The grader of a benchmark is named in `conf/benchmark/NAME.yaml`: `grading.judge` for mathematics,
`grading.numeric` for numbers, or a function of the benchmark's own module (ifeval, humaneval, ...).
"""
