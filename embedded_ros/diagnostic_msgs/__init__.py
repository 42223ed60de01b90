"""The interfaces of `diagnostic_msgs`."""
