"""Everything between robot units and token ids. No jax here."""
