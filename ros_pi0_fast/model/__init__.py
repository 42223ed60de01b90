"""The model: pure functions and Flax modules on arrays."""
