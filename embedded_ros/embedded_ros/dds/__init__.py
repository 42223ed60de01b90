"""DDS as `rmw_cyclonedds_cpp` uses it: names, QoS, participants, endpoints, graph."""
