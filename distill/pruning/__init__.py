"""Prune a model: drop consecutive blocks that change its hidden states least."""
