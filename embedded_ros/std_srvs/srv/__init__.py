"""The services of `std_srvs`."""

from embedded_ros.interface_module import export

export(__name__)
