"""Names that rclpy's extension module has and programs catch."""

from rclpy.exceptions import InvalidHandle

__all__ = ['InvalidHandle', 'RCLError']


class RCLError(RuntimeError):
    """An operation of the client library failed."""
