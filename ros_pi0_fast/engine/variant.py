"""What is switched on: one frozen, hashable value."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


class VariantError(ValueError):
    """A variant that cannot run; the message names the field, its value and what it needs."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The optimizations of one inference. The default has all lossless ones on.

    Raises:
        VariantError: a field needs another one to be on.
    """

    unrolled_layers: bool = True
    """Lossless: each layer has weights of its own. Off: layers stacked and scanned, as in
    openpi, which copies each layer's weights out of the stack."""
    in_place_cache: bool = True
    """Lossless: each layer's cache is a buffer of its own that is written in place. Off: a stack
    that is rebuilt in every step."""
    matrix_weights: bool = True
    """Lossless: weights are stored as the matrices that they are multiplied as. Off: as openpi
    stores them, so that the compiler rearranges them in every step."""
    packed_prefix: bool = True
    """Lossless: prompts are padded to the smallest declared bucket and attention goes by lengths.
    Off: prompts padded to max_token_len, right-aligned, under a dense mask."""
    black_camera_cache: bool = True
    """Lossless: the tokens of cameras that the robot lacks, which are black, are computed once.
    Off: in every inference."""
    cut_head: bool = True
    """Lossless: logits of the ids that can occur only. Off: of the whole vocabulary."""
    constant_prefix: bool = True
    """Lossless: 'Action: ' goes through the decoder in one pass. Off: one by one."""
    early_stop: bool = True
    """Lossless: decoding ends with the last coefficient. Off: with EOS."""
    device_resize: bool = True
    """Lossless: pictures are resized on the device. Off: by Pillow on the host."""
    one_round_trip: bool = True
    """Lossless: all stages are handed to the device at once. Off: the host waits after each."""

    def __post_init__(self) -> None:
        for field, needed in NEEDS.items():
            if getattr(self, field) and not getattr(self, needed):
                raise VariantError(f'{field}: true, expected {needed} to be true with it')

    @property
    def name(self) -> str:
        """'default', 'reference', or what differs from the default: 'early_stop=false'."""
        if self == REFERENCE:
            return 'reference'
        changed = [f'{field.name}={str(getattr(self, field.name)).lower()}'
                   for field in fields(self) if getattr(self, field.name) != field.default]
        return ','.join(changed) or 'default'


NEEDS = {'in_place_cache': 'unrolled_layers', 'matrix_weights': 'unrolled_layers'}
"""Fields that mean something only with another one on."""
LOSSLESS = tuple(field.name for field in fields(Variant))
"""Fields that do not change the tokens."""
REFERENCE = Variant(**dict.fromkeys(LOSSLESS, False))
"""The textbook path, as openpi takes it: what speeds are compared with."""


def alone(gain: str) -> Variant:
    """Return the reference with one gain on, and what that one needs."""
    return replace(REFERENCE, **{NEEDS.get(gain, gain): True, gain: True})
