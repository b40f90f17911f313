"""Drift, suitability and token weights."""
