"""Checkpoints in and out, in the layout that openpi writes."""
