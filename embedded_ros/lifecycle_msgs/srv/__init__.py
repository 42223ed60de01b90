"""The services of `lifecycle_msgs`."""

from embedded_ros.interface_module import export

export(__name__)
