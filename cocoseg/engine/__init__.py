"""How work is run: items made ahead in background threads. No pixels, no files."""
