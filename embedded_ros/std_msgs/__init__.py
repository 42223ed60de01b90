"""The interfaces of `std_msgs`."""
