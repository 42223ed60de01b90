"""The interfaces of `rmw_dds_common`."""
