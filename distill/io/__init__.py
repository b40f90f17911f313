"""Files, caches, locks, progress bars."""
