"""Message classes behave as those that ROS 2 generates, and their CDR is ROS 2's."""

import array
import struct

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from embedded_ros.typestore import deserialize, interface_store, serialize
from geometry_msgs.msg import PoseWithCovariance, Quaternion
from rcl_interfaces.msg import ParameterType, ParameterValue
from rosbags.serde import SerdeError
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Empty, Float32MultiArray, Header, String, UInt8
from std_srvs.srv import SetBool, Trigger

# From a ROS 2 Jazzy's `ros2 topic info -v` and type_description JSON files.
KNOWN_HASHES = {
    'std_msgs/msg/String':
        'RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18',
    'sensor_msgs/msg/Image':
        'RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47',
}


def test_defaults_and_keywords():
    image = Image(height=2, encoding='rgb8')
    assert (image.height, image.width, image.encoding) == (2, 0, 'rgb8')
    assert image.header == Header()
    assert image.data == array.array('B')
    assert Quaternion().w == 1.0
    assert PoseWithCovariance().pose.orientation.w == 1.0
    assert PoseWithCovariance().covariance.shape == (36,)
    assert Image.get_fields_and_field_types()['header'] == 'std_msgs/Header'
    assert Image.get_fields_and_field_types()['data'] == 'sequence<uint8>'
    assert PoseWithCovariance.get_fields_and_field_types()['covariance'] == 'double[36]'


def test_two_messages_share_nothing():
    one, other = JointState(), JointState()
    one.name.append('a')
    one.header.frame_id = 'base'
    assert other.name == []
    assert other.header.frame_id == ''


@pytest.mark.parametrize('data', [
    b'\x01\x02\xff', bytearray(b'\x01\x02\xff'), memoryview(b'\x01\x02\xff'),
    array.array('B', [1, 2, 255]), np.array([1, 2, 255], np.uint8), [1, 2, 255], (1, 2, 255)])
def test_image_data_takes_what_holds_bytes(data):
    image = Image(data=data)
    assert isinstance(image.data, array.array)
    assert image.data.tolist() == [1, 2, 255]


@pytest.mark.parametrize(('make', 'words'), [
    (lambda: String(data=3), ["'data'", "'String'", 'str', '3']),
    (lambda: String(text='a'), ['text', 'std_msgs/msg/String', 'data']),
    (lambda: UInt8(data=256), ['256', '[0, 255]']),
    (lambda: UInt8(data=1.5), ['int', '1.5']),
    (lambda: JointState(position=[1, 2]), ['position', 'floats']),
    (lambda: JointState(name='abc'), ['name', 'sequence']),
    (lambda: JointState(name=['a', 3]), ['name', 'str', '3']),
    (lambda: JointState(header=Time()), ['header', 'std_msgs/Header']),
    (lambda: Image(data=np.zeros((2, 2), np.uint8)), ['data', 'one-dimensional']),
    (lambda: Image(data=np.zeros(2)), ['data', 'uint8']),
    (lambda: Image(data=[1, 300]), ['data', '300']),
    (lambda: PoseWithCovariance(covariance=[1.0]), ['covariance', '36']),
])
def test_wrong_values_are_refused_by_name(make, words):
    with pytest.raises(AssertionError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_equality_repr_and_constants():
    one = JointState(name=['a'], position=[0.5])
    assert one == JointState(name=['a'], position=[0.5])
    assert one != JointState(name=['a'], position=[0.25])
    assert one != String()
    assert PoseWithCovariance() == PoseWithCovariance()
    assert repr(String(data='x')) == "std_msgs.msg.String(data='x')"
    assert 'position=[0.5]' in repr(one)
    assert ParameterType.PARAMETER_STRING_ARRAY == 9
    assert DiagnosticStatus.ERROR == b'\x02'


@pytest.mark.parametrize('message', [
    Empty(), String(data='é\n'), JointState(name=['a', ''], position=[1.0, -2.5]),
    PoseWithCovariance(covariance=np.arange(36.0)),
    DiagnosticArray(status=[DiagnosticStatus(level=b'\xff', values=[KeyValue(key='k')]),
                            DiagnosticStatus()]),
    ParameterValue(bool_array_value=[True, False], byte_array_value=[b'\x01', b'\xff'],
                   string_array_value=['', 'ü'], integer_array_value=[-2**63, 2**63 - 1]),
    Float32MultiArray(data=np.float32([0.1, np.inf])), SetBool.Request(data=True),
    Trigger.Response(success=True, message='done')], ids=lambda m: type(m).__name__)
def test_cdr_round_trip(message):
    copy = deserialize(serialize(message), type(message))
    assert copy == message
    for name in message.get_fields_and_field_types():
        assert type(getattr(copy, name)) is type(getattr(message, name)), name


def test_cdr_bytes_of_a_joint_state():
    """Written down by hand from the rules of XCDR1: alignment, lengths, terminators."""
    message = JointState(header=Header(stamp=Time(sec=1, nanosec=2), frame_id='ab'),
                         name=['j'], position=[0.5])
    expected = (b'\x00\x01\x00\x00' + struct.pack('<iI', 1, 2)
                + struct.pack('<I', 3) + b'ab\0' + b'\0'
                + struct.pack('<I', 1) + struct.pack('<I', 2) + b'j\0' + b'\0\0'
                + struct.pack('<I', 1) + struct.pack('<d', 0.5)
                + struct.pack('<I', 0) + struct.pack('<I', 0))
    assert bytes(serialize(message)) == expected


def test_big_endian_is_understood():
    data = b'\x00\x00\x00\x00' + struct.pack('>iI', 7, 9)
    assert deserialize(data, Time) == Time(sec=7, nanosec=9)


@pytest.mark.parametrize('data', [
    b'', b'\x00\x01\x00\x00', b'\x00\x01\x00\x00\xff\xff\xff\x7fabc',
    b'\x00\x01\x00\x00\x02\x00\x00\x00\xff\x00', b'\x00\x07\x00\x00\x01\x00\x00\x00\x00'])
def test_broken_cdr_is_refused(data):
    with pytest.raises(SerdeError):
        deserialize(data, String)


def test_type_hashes_are_those_of_ros():
    for name, expected in KNOWN_HASHES.items():
        assert interface_store().type_hash(name) == expected
