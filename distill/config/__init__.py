"""Compose, check and build the configuration; the console."""
