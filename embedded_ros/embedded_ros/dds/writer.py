"""A writer of ready bytes that lets other Python threads run while it writes."""

import ctypes

from cyclonedds.core import DDSException
from cyclonedds.internal import c_call, dds_c_t
from cyclonedds.pub import DataWriter
from cyclonedds.topic import Sample

ALIGNMENT = 4  # bytes that a sample's size is a multiple of


class RawWriter(DataWriter):
    """Writes CDR with its encapsulation header.

    `DataWriter.write` keeps the interpreter's lock, and with it all threads, for as long as a slow
    reliable reader makes DDS wait (cyclonedds 11: `clayer/pysertype.c`, `ddspy_write`).
    """

    def write_raw(self, data: bytes) -> None:
        """Write one sample; raises DDSException."""
        data = data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b'\0')
        sample = Sample(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
        reference = getattr(self, '_ref', None)  # another thread may have deleted it just now
        code = (DDSException.DDS_RETCODE_ALREADY_DELETED if reference is None
                else self._dds_write(reference, ctypes.addressof(sample)))
        if code < 0:
            raise DDSException(code, f'Occurred while writing to {self.topic.name}')

    @c_call('dds_write')
    def _dds_write(self, writer: dds_c_t.entity, sample: ctypes.c_void_p) -> dds_c_t.returnv:
        """Call `dds_write` (ctypes gives the interpreter's lock away)."""
