"""`ros2 launch`: read XML launch files, start their processes, end them together."""
