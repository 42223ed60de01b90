"""Optimizations, one a file."""
