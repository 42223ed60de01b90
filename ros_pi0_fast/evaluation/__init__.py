"""Parity, benchmark, success, bag replay."""
