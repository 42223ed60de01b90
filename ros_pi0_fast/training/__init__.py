"""Training of the policy and of what makes it faster."""
