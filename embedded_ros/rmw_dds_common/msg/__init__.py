"""The messages of `rmw_dds_common`."""

from embedded_ros.interface_module import export

export(__name__)
