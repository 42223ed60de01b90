"""Nodes with a managed lifecycle (https://design.ros2.org/articles/node_lifecycle.html)."""

from rclpy.lifecycle.managed_entity import ManagedEntity, SimpleManagedEntity
from rclpy.lifecycle.node import LifecycleNode, LifecycleNodeMixin, LifecycleState
from rclpy.lifecycle.publisher import LifecyclePublisher
from rclpy.lifecycle.state_machine import TransitionCallbackReturn

Node = LifecycleNode
Publisher = LifecyclePublisher
State = LifecycleState

__all__ = ['LifecycleNode', 'LifecycleNodeMixin', 'LifecyclePublisher', 'LifecycleState',
           'ManagedEntity', 'Node', 'Publisher', 'SimpleManagedEntity', 'State',
           'TransitionCallbackReturn']
