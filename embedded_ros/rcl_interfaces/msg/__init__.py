"""The messages of `rcl_interfaces`."""

from embedded_ros.interface_module import export

export(__name__)
