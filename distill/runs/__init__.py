"""Run folders: write them, read them, and make tables of them."""
