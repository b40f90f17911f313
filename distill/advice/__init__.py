"""Tips for a prompt: written from right and wrong traces, voted on, checked for leaks, and tested (2310.14403)."""
