"""A robot that says exactly what a test wants and keeps what the policy answers."""

import array
import time

import cv2
import numpy as np
import rclpy
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from ros_pi0_fast.msg import ActionChunk, InferenceStats
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

JOINTS = ['base_yaw', 'shoulder', 'elbow', 'wrist_pitch', 'gripper']


class Robot(Node):
    """Publishes one observation at a time: raw pictures of the base, compressed ones of the wrist.

    Its topics are those of a policy node in the same namespace.
    """

    def __init__(self, namespace=''):
        super().__init__('test_robot', namespace=namespace)
        self._base = self.create_publisher(Image, 'image/base', qos_profile_sensor_data)
        self._wrist = self.create_publisher(CompressedImage, 'image/wrist',
                                            qos_profile_sensor_data)
        self._joints = self.create_publisher(JointState, 'joint_states', 10)
        self._instruction = self.create_publisher(String, 'instruction', 10)
        self._set = self.create_client(SetParameters, 'policy_node/set_parameters')
        self._set_together = self.create_client(SetParametersAtomically,
                                                'policy_node/set_parameters_atomically')
        self.chunks, self.stats = [], []
        self.create_subscription(ActionChunk, 'action_chunk', self._hear, 10)
        self.create_subscription(InferenceStats, 'policy_node/stats', self.stats.append, 50)

    def _hear(self, chunk):
        self.chunks.append(chunk)

    def say(self, *, cameras=('base', 'wrist'), instruction='touch the red cube', joints=None,
            wrist=None, **base):
        """Publish an observation; return its stamp, nanoseconds.

        `base` changes fields of the base camera's message, `wrist` the bytes of the wrist's, and
        `joints` fields of the joint state.
        """
        now = self.get_clock().now()
        if instruction is not None:
            self._instruction.publish(String(data=instruction))
        state = {'name': JOINTS, 'position': [0.1, 0.2, 0.3, 0.4, 0.0], **(joints or {})}
        pixels = np.full((64, 64, 3), now.nanoseconds % 251, np.uint8)
        picture = {'height': 64, 'width': 64, 'step': 192, 'encoding': 'rgb8',
                   'data': array.array('B', pixels.tobytes()), **base}
        data = cv2.imencode('.png', pixels)[1].tobytes() if wrist is None else wrist
        messages = [(self._joints, JointState(**state))]
        if 'base' in cameras:
            messages.append((self._base, Image(**picture)))
        if 'wrist' in cameras:
            messages.append((self._wrist, CompressedImage(
                format='png', data=array.array('B', data))))
        for publisher, message in messages:
            message.header.stamp = now.to_msg()
            publisher.publish(message)
        return now.nanoseconds

    def until(self, done, *, timeout=30.0, every=0.1, **saying):
        """Say the same again and again until `done()`; return the stamps of what was said."""
        stamps, end = [], time.monotonic() + timeout
        while not done():
            assert time.monotonic() < end, f'{len(self.chunks)} chunks, {self.reasons[-3:]}'
            stamps.append(self.say(**saying))
            next_time = time.monotonic() + every
            while time.monotonic() < next_time:
                rclpy.spin_once(self, timeout_sec=0.02)
        return stamps

    def set_parameter(self, name, value, timeout=15.0):
        """Set a parameter of the policy node; return '' or the reason why it was refused."""
        assert self._set.wait_for_service(timeout_sec=timeout)
        done = self._set.call_async(SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]))
        rclpy.spin_until_future_complete(self, done, timeout_sec=timeout)
        result, = done.result().results
        assert result.successful == (not result.reason)
        return result.reason

    def set_together(self, values, timeout=15.0):
        """Set parameters at once, all or none; return '' or the reason why not."""
        assert self._set_together.wait_for_service(timeout_sec=timeout)
        done = self._set_together.call_async(SetParametersAtomically.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()
                        for name, value in values.items()]))
        rclpy.spin_until_future_complete(self, done, timeout_sec=timeout)
        return done.result().result.reason

    @property
    def reasons(self):
        """Reasons of the refusals so far."""
        return [stats.reason for stats in self.stats if stats.state == 'refused']

    def of_state(self, state):
        """Return the statistics of one state: inference, refused, failed."""
        return [stats for stats in self.stats if stats.state == state]

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
