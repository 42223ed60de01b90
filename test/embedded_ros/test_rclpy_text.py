"""Messages as text and back: rosidl_runtime_py."""

import numpy as np
import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovariance
from rosidl_runtime_py import (
    message_to_csv,
    message_to_ordereddict,
    message_to_yaml,
    set_message_fields,
)
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String, UInt8


def joint_state() -> JointState:
    message = JointState()
    set_message_fields(message, {'header': {'stamp': {'sec': 3}, 'frame_id': 'base'},
                                 'name': ['a', 'b'], 'position': [1, 2.5]})
    return message


def test_fields_from_a_map():
    message = joint_state()
    assert (message.header.stamp.sec, message.name) == (3, ['a', 'b'])
    assert message.position.tolist() == [1.0, 2.5]
    array = DiagnosticArray()
    set_message_fields(array, {'status': [{'level': 2, 'values': [{'key': 'k', 'value': 'v'}]}]})
    assert array.status[0].level == b'\x02' and array.status[0].values[0].key == 'k'
    pose = PoseWithCovariance()
    set_message_fields(pose, {'covariance': list(range(36)), 'pose': {'position': {'x': 1}}})
    assert pose.covariance[35] == 35.0 and pose.pose.position.x == 1.0


@pytest.mark.parametrize(('message', 'values', 'error', 'words'), [
    (String(), {'text': 'x'}, AttributeError, ['std_msgs/msg/String', "'text'", 'data']),
    (String(), 'x', ValueError, ['std_msgs/msg/String', "'x'"]),
    (UInt8(), {'data': 'x'}, ValueError, ['std_msgs/msg/UInt8.data', "'x'"]),
    (UInt8(), {'data': 300}, AssertionError, ['data', '300']),
    (JointState(), {'header': 3}, ValueError, ['header', '3'])])
def test_what_does_not_fit_is_named(message, values, error, words):
    with pytest.raises(error) as caught:
        set_message_fields(message, values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_yaml_is_read_back():
    message, copy = joint_state(), JointState()
    text = message_to_yaml(message)
    assert list(yaml.safe_load(text)) == ['header', 'name', 'position', 'velocity', 'effort']
    set_message_fields(copy, yaml.safe_load(text))
    assert copy == message
    assert message_to_yaml(String(data='ü'), flow_style=True) == '{data: ü}\n'


def test_long_fields_are_cut_or_summed_up():
    image = Image(encoding='rgb8', data=np.arange(200, dtype=np.uint8))
    shown = message_to_ordereddict(image, truncate_length=3)
    assert shown['data'] == [0, 1, 2, '...'] and shown['encoding'] == 'rgb...'
    shown = message_to_ordereddict(image, no_arr=True, no_str=True)
    assert shown['data'] == '<sequence type: uint8, length: 200>'
    assert shown['encoding'] == '<string length: <4>>'
    fixed = message_to_ordereddict(PoseWithCovariance(), no_arr=True)['covariance']
    assert fixed == '<array type: double[36]>'


def test_csv():
    assert message_to_csv(joint_state()) == '3,0,base,a,b,1.0,2.5'
