"""A whole fleet on one machine: an embedded Valkey and a simulated provider."""
