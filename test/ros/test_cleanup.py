"""Cleaned up, the node holds nothing of the policy, however that ended; in this process."""

import gc
import weakref

import jax
import pytest
import rclpy
from rclpy.lifecycle import TransitionCallbackReturn

from ros_pi0_fast.engine.engine import Engine
from ros_pi0_fast.node import policy_node
from ros_pi0_fast.node.serving import Serving

SUCCESS, ERROR = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.ERROR


@pytest.fixture
def node(random_checkpoint):
    rclpy.init(args=['--ros-args', '-p', f'checkpoint:={random_checkpoint}', '-p',
                     'autostart:=false', '-p', "compilation_cache:=''"])
    node = policy_node.PolicyNode()
    yield node
    node.stop(60)
    node.destroy_node()
    rclpy.try_shutdown()


def bytes_on_device():
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_no_weights_are_left_and_every_failure_can_be_put_right(node, monkeypatch):
    engines, before = [], bytes_on_device()

    class Seen(Engine):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            engines.append(weakref.ref(self))

        def warm_up(self, progress=lambda text: None):
            if len(engines) == 2:
                raise RuntimeError('the device is lost')

    monkeypatch.setattr(policy_node, 'Engine', Seen)
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    assert bytes_on_device() > before + engines[0]().weight_bytes // 2
    assert node.trigger_deactivate() == node.trigger_cleanup() == SUCCESS
    assert bytes_on_device() == before and engines[0]() is None

    assert node.trigger_configure() == ERROR
    assert (node.state, node.problem) == (
        'unconfigured', 'cannot configure: RuntimeError: the device is lost')
    assert bytes_on_device() == before and engines[1]() is None

    assert node.trigger_configure() == SUCCESS and not node.problem
    with monkeypatch.context() as patch:
        patch.setattr(Serving, '_subscribe', lambda self: 1 / 0)
        assert node.trigger_activate() == ERROR
    assert node.state == 'unconfigured' and 'ZeroDivisionError' in node.problem
    assert bytes_on_device() == before

    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    assert node.state == 'active'
    with monkeypatch.context() as patch:
        patch.setattr(Serving, 'stop', lambda self, timeout_s=None: 1 / 0)
        assert node.trigger_deactivate() == ERROR
    assert node.trigger_configure() == SUCCESS
