"""Sans-IO transforms on a batch of frames, one idea per file."""
