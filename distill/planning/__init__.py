"""Estimate FLOPs, memory, time and disk of a run or a sweep."""
