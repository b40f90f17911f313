"""Analyses: drift (exposure bias), suitability of traces, token weights; evaluation of models."""
