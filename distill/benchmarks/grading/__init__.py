"""Grade answers and programs."""
