"""A process that can be killed: both cameras of the tabletop, 20 times a second, until it dies."""

import array

import cv2
import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

RATE_HZ = 20.0


class Camera(Node):
    """Stamps by simulated time."""

    def __init__(self):
        super().__init__('camera', parameter_overrides=[Parameter('use_sim_time', value=True)])
        self._base = self.create_publisher(Image, 'image/base', qos_profile_sensor_data)
        self._wrist = self.create_publisher(CompressedImage, 'image/wrist',
                                            qos_profile_sensor_data)
        self._count = 0
        self.create_timer(1 / RATE_HZ, self._publish,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _publish(self):
        now = self.get_clock().now()
        if not now.nanoseconds:
            return
        self._count += 1
        pixels = np.full((64, 64, 3), self._count % 251, np.uint8)
        base = Image(height=64, width=64, step=192, encoding='rgb8',
                     data=array.array('B', pixels.tobytes()))
        wrist = CompressedImage(format='png', data=array.array(
            'B', cv2.imencode('.png', pixels)[1].tobytes()))
        for publisher, message in ((self._base, base), (self._wrist, wrist)):
            message.header.stamp = now.to_msg()
            publisher.publish(message)


if __name__ == '__main__':
    rclpy.init()
    rclpy.spin(Camera())
