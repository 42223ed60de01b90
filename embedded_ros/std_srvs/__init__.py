"""The interfaces of `std_srvs`."""
