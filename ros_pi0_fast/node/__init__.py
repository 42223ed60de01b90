"""The ROS 2 node and what it is made of."""
