"""What goes wrong with weights on disk."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the folder, the leaf and the reason."""
