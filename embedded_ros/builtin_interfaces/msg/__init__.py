"""The messages of `builtin_interfaces`."""

from embedded_ros.interface_module import export

export(__name__)
