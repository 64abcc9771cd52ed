"""How to read a frame: one wire dialect per file, all into the same reading."""
