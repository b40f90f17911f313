"""Runs' folders: write, read, tabulate."""
