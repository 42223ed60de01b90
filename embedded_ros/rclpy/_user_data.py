"""What ROS tells about an endpoint in its DDS user data."""

from cyclonedds.core import Policy, Qos
from embedded_ros.typestore import interface_store

from embedded_ros import distro


def user_data(ros_type: str, **more: str) -> str:
    """Return `key=value;` pairs, with the type's hash where the distribution has hashes."""
    pairs = {**more}
    if distro() != 'humble':
        pairs['typehash'] = interface_store().type_hash(ros_type)
    return ''.join(f'{key}={value};' for key, value in pairs.items())


def parse_user_data(qos: Qos) -> dict[str, str]:
    """Return the pairs in an endpoint's user data."""
    policy = qos[Policy.Userdata]
    text = '' if policy is None else policy.data.decode('ascii', 'replace')
    pairs = (pair.split('=', 1) for pair in text.split(';') if '=' in pair)
    return {key.strip(): value.strip() for key, value in pairs}
