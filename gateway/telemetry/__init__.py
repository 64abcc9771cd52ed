"""What the outside can see: metrics, logs, traces. Every name stands here once."""
