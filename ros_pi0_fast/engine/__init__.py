"""From an observation to an action chunk, compiled."""
