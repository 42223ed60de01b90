"""A small `ros2` command for machines without ROS 2; one module a verb group."""
