"""DDS types whose samples are ready bytes.

`cyclonedds` wants a Python type for each topic and calls its `deserialize`, which here hands over
CDR as it is. The type's fields are a dummy; only its name matters.
"""

from functools import cache

from cyclonedds.idl import IdlStruct, make_idl_struct
from cyclonedds.idl.types import uint8


class Sample:
    """One sample: CDR with its encapsulation header; the reader sets `sample_info`."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @classmethod
    def deserialize(cls, data: bytes, *_: object, **__: object) -> 'Sample':
        """Keep received bytes."""
        return cls(data)


@cache
def payload_type(dds_type: str) -> type[IdlStruct]:
    """Return the class of the samples of topics whose DDS type has this name.

    It has the methods of Sample but is no subclass: cyclonedds describes base classes in XTypes.
    """
    cls = make_idl_struct('Payload', dds_type, {'first': uint8}, dataclassify=False)
    cls.__init__ = Sample.__init__
    cls.deserialize = cls.deserialize_key = classmethod(Sample.deserialize.__func__)
    return cls


def raw_bytes(sample: object) -> bytes | None:
    """Return a received sample's CDR; None for a disposal, which carries none."""
    return getattr(sample, 'raw', None)
