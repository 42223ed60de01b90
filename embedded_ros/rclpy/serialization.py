"""Messages as CDR bytes and back."""

from embedded_ros.typestore import deserialize, serialize


def serialize_message(message: object) -> bytes:
    """Return the CDR of a message."""
    return bytes(serialize(message))


def deserialize_message(serialized_message: bytes, message_type: type) -> object:
    """Return the message of a class; raises rosbags' SerdeError when the bytes are none."""
    return deserialize(serialized_message, message_type)
