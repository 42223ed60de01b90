"""Training and deployment see the same: a bag and the live node yield identical model inputs."""

import threading
import time

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from ros_pi0_fast.msg import ActionChunk
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header, String

from ros_pi0_fast.codec.policy_codec import PolicyCodec
from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.engine.policy import load_policy
from ros_pi0_fast.evaluation.bag_reader import BagReader
from ros_pi0_fast.node.gate import release
from ros_pi0_fast.node.policy_node import PolicyNode
from ros_pi0_fast.sim import record
from ros_pi0_fast.training.bags import LABELS

DOMAIN = 63
WAIT_S = 60.0


@pytest.fixture(scope='module')
def moments(tmp_path_factory, tabletop_profile):
    folder = tmp_path_factory.mktemp('bags')
    record.main(['--episodes', '1', '--seed', '7', '--out', str(folder)])
    with BagReader(folder / 'shard_0000', tabletop_profile) as reader:
        return list(reader.moments(LABELS))[:6]


class Robot(Node):
    """Says over DDS what a bag holds, stamped anew, and keeps the answers."""

    def __init__(self, profile):
        super().__init__('bag_robot')
        self.chunks = {}
        self._profile = profile
        self._images = {key: self.create_publisher(Image, source.topic, qos_profile_sensor_data)
                        for key, source in profile.cameras.items()}
        self._joints = self.create_publisher(JointState, 'joint_states', 10)
        self._instruction = self.create_publisher(String, 'instruction', 10)
        self.create_subscription(ActionChunk, 'action_chunk', self._keep, 10)

    def _keep(self, message):
        stamp = message.header.stamp
        self.chunks[stamp.sec * 10**9 + stamp.nanosec] = message

    def say(self, observation):
        now = self.get_clock().now().nanoseconds
        header = Header(stamp=Time(sec=now // 10**9, nanosec=now % 10**9))
        self._instruction.publish(String(data=observation.instruction))
        self._joints.publish(JointState(
            header=header, name=list(self._profile.state.joints),
            position=[float(value) for value in observation.state]))
        # Topics are not ordered among each other: pictures are what makes an observation new.
        time.sleep(0.1)
        for key, publisher in self._images.items():
            height, width, _ = observation.images[key].shape
            publisher.publish(Image(header=header, height=height, width=width, encoding='rgb8',
                                    step=3 * width, data=observation.images[key].tobytes()))
        return now


@pytest.fixture
def live(random_checkpoint, tabletop_profile, monkeypatch):
    """The node in this process, over DDS, with all that its codec was given and made of it."""
    encoded, real = {}, PolicyCodec.encode

    def encode(self, observation):
        result = real(self, observation)
        encoded[observation.stamp_ns] = (observation, result)
        return result

    monkeypatch.setattr(PolicyCodec, 'encode', encode)
    rclpy.init(args=['--ros-args', '-p', f'checkpoint:={random_checkpoint}', '-p',
                     'rate_hz:=100.0', '-p', "compilation_cache:=''"], domain_id=DOMAIN)
    nodes = [PolicyNode(), Robot(tabletop_profile)]
    executor = MultiThreadedExecutor(num_threads=4)
    for node in nodes:
        executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield nodes[1], encoded
    assert nodes[0].stop(WAIT_S)
    executor.shutdown()
    thread.join(WAIT_S)
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown()


def test_a_bag_and_the_live_node_give_the_model_the_same(live, moments, random_checkpoint,
                                                         tabletop_profile):
    robot, encoded = live
    checkpoint, codec = load_policy(random_checkpoint, tabletop_profile)
    engine = Engine(checkpoint, codec)
    for moment in moments:
        end, stamp = time.monotonic() + WAIT_S, None
        while stamp not in robot.chunks:  # Said again until the node listens and answers.
            assert time.monotonic() < end
            stamp = robot.say(moment.observation)
            time.sleep(0.15)
        observation, live_inputs = encoded[stamp]
        offline = codec.encode(moment.observation)
        np.testing.assert_array_equal(observation.state, moment.observation.state)
        np.testing.assert_array_equal(live_inputs.prompt_ids, offline.prompt_ids)
        np.testing.assert_array_equal(live_inputs.normalized_state, offline.normalized_state)
        assert live_inputs.images.keys() == offline.images.keys()
        for key, picture in offline.images.items():
            np.testing.assert_array_equal(live_inputs.images[key], picture)
        expected = release(engine.infer(moment.observation), tabletop_profile,
                           'clamp').chunk.actions
        np.testing.assert_array_equal(
            np.reshape(robot.chunks[stamp].actions, expected.shape), expected)
