"""Choosing and changing traces before training: a step is a function, and a file in `conf/curation/`."""
