"""Traces: records, file readers, tokenization and batches."""
