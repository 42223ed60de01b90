"""The simulated tabletop, its expert, and its robot node."""
