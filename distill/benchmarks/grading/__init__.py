"""Judge answers and programs."""
