"""Training runs: set up, fit, checkpoint, resume."""
