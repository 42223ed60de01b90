"""What is switched on: one frozen, hashable value."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The optimizations of one inference. The default has all lossless ones on."""

    unrolled_layers: bool = True
    """Lossless: each layer has weights of its own and its cache is written in place. Off: layers
    stacked and scanned, as in openpi."""
    packed_prompt: bool = True
    """Lossless: prompts are padded to the smallest declared bucket. Off: to max_token_len."""

    @property
    def name(self) -> str:
        """'default', or what differs from it: 'unrolled_layers=false'."""
        changed = [f'{field.name}={str(getattr(self, field.name)).lower()}'
                   for field in fields(self) if getattr(self, field.name) != field.default]
        return ','.join(changed) or 'default'
