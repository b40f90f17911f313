"""Objectives: rollouts × token loss × token weight."""
