"""Compose, check and instantiate the configuration; console output and errors."""
