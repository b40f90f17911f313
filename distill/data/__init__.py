"""Traces: records, readers, tokens, batches."""
