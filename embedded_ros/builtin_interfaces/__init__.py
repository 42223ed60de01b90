"""The interfaces of `builtin_interfaces`."""
