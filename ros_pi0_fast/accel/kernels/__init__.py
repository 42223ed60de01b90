"""Attention by kernels that only some devices run; each says why it cannot run where it cannot."""
