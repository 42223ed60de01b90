"""A robot that says exactly what a test wants and keeps what the policy answers."""

import array
import time

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from ros_pi0_fast.msg import ActionChunk, InferenceStats
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

JOINTS = ['base_yaw', 'shoulder', 'elbow', 'wrist_pitch', 'gripper']


class Robot(Node):
    """Publishes one observation at a time."""

    def __init__(self):
        super().__init__('test_robot')
        self._images = {camera: self.create_publisher(Image, f'image/{camera}',
                                                      qos_profile_sensor_data)
                        for camera in ('base', 'wrist')}
        self._joints = self.create_publisher(JointState, 'joint_states', 10)
        self._instruction = self.create_publisher(String, 'instruction', 10)
        self.chunks, self.stats = [], []
        self.create_subscription(ActionChunk, 'action_chunk', self.chunks.append, 10)
        self.create_subscription(InferenceStats, 'policy_node/stats', self.stats.append, 50)

    def say(self, *, cameras=('base', 'wrist'), instruction='touch the red cube', **image):
        """Publish an observation; return its stamp, nanoseconds. `image` changes the pictures."""
        now = self.get_clock().now()
        self._instruction.publish(String(data=instruction))
        joints = JointState(name=JOINTS, position=[0.1, 0.2, 0.3, 0.4, 0.0])
        joints.header.stamp = now.to_msg()
        self._joints.publish(joints)
        for camera in cameras:
            pixels = np.full((64, 64, 3), now.nanoseconds % 251, np.uint8)
            message = Image(height=64, width=64, step=192, encoding='rgb8',
                            data=array.array('B', pixels.tobytes()))
            for name, value in image.items():
                setattr(message, name, value)
            message.header.stamp = now.to_msg()
            self._images[camera].publish(message)
        return now.nanoseconds

    def until(self, done, *, timeout=30.0, every=0.1, **saying):
        """Say the same again and again until `done()`; return the stamps of what was said."""
        stamps, end = [], time.monotonic() + timeout
        while not done():
            assert time.monotonic() < end, f'{len(self.chunks)} chunks, last stats {self.reasons}'
            stamps.append(self.say(**saying))
            next_time = time.monotonic() + every
            while time.monotonic() < next_time:
                rclpy.spin_once(self, timeout_sec=0.02)
        return stamps

    @property
    def reasons(self):
        """Reasons of the refusals so far."""
        return [stats.reason for stats in self.stats if stats.state == 'refused']

    def forget(self):
        """Drop what came so far, and what is still on its way."""
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            rclpy.spin_once(self, timeout_sec=0.05)
        self.chunks.clear()
        self.stats.clear()


def stamp_of(message) -> int:
    """Return a message's stamp, nanoseconds."""
    return Time.from_msg(message.header.stamp).nanoseconds
