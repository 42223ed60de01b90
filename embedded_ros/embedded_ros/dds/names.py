"""How ROS names look on the wire."""


def topic_name(ros_name: str) -> str:
    """Return the DDS topic of a ROS topic."""
    return f'rt{ros_name}'


def request_name(ros_name: str) -> str:
    """Return the DDS topic of a service's requests."""
    return f'rq{ros_name}Request'


def reply_name(ros_name: str) -> str:
    """Return the DDS topic of a service's replies."""
    return f'rr{ros_name}Reply'


def dds_type_name(ros_type: str) -> str:
    """Return the DDS name of a type: `pkg/msg/Name` is `pkg::msg::dds_::Name_`."""
    package, folder, name = ros_type.split('/')
    return f'{package}::{folder}::dds_::{name}_'


def ros_type_name(dds_type: str) -> str | None:
    """Return the ROS name of a DDS type, or None when it is none of ROS."""
    package, marker, name = dds_type.partition('::dds_::')
    if not marker or not name.endswith('_'):
        return None
    return f'{package.replace("::", "/")}/{name[:-1]}'


def ros_topic_name(dds_topic: str) -> str | None:
    """Return the ROS topic of a DDS topic, or None when it carries none."""
    return dds_topic[2:] if dds_topic.startswith('rt/') else None


def ros_service_name(dds_topic: str) -> str | None:
    """Return the ROS service of a DDS topic, or None when it carries none."""
    for prefix, suffix in (('rq/', 'Request'), ('rr/', 'Reply')):
        if dds_topic.startswith(prefix) and dds_topic.endswith(suffix):
            return dds_topic[2:-len(suffix)]
    return None


def service_type_name(dds_type: str) -> str | None:
    """Return the ROS service type of a request's or reply's DDS type, or None."""
    ros_type = ros_type_name(dds_type)
    for suffix in ('_Request', '_Response'):
        if ros_type and ros_type.endswith(suffix):
            return ros_type.removesuffix(suffix)
    return None
