"""Files, caches, locks and progress bars."""
