"""Dynamic video inference in JAX."""
