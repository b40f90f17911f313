"""Tips for a prompt: written from right and wrong traces, voted on, checked, and tested (2310.14403)."""
