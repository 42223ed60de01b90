"""What is switched on: one frozen, hashable value."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from ros_pi0_fast.accel.draft_length import LONGEST


class VariantError(ValueError):
    """A variant that cannot run; the message names the field, its value and what it needs."""


def _lossless(text: str, parameter: str = '') -> bool:
    """Declare a switch that does not change the tokens.

    Args:
        text: What it does.
        parameter: Name of the node's parameter; engine.<name of the field> if empty.
    """
    return field(default=True, metadata={'help': text, 'lossless': True, 'parameter': parameter})


def _lossy(text: str, parameter: str, *choices: str) -> str:
    """Declare a choice that changes the tokens; the first one is off, and the default."""
    return field(default=choices[0], metadata={'help': text, 'lossless': False,
                                               'parameter': parameter, 'choices': choices})


def _setting(text: str, parameter: str, default: Any, *, lossless: bool,
             bounds: tuple[float, float] | None = None, choices: tuple[str, ...] = ()) -> Any:
    """Declare a switch that is off by default, or a value that such a switch is set with."""
    return field(default=default, metadata={'help': text, 'lossless': lossless, 'bounds': bounds,
                                            'parameter': parameter, 'choices': choices})


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The optimizations of one inference. The default has all lossless ones on, no lossy one.

    `metadata['help']` of each field says what it does, `parameter_of` how the node calls it.

    Raises:
        VariantError: a field needs another one to be on.
    """

    unrolled_layers: bool = _lossless(
        'each layer has weights of its own; off: stacked and scanned, as in openpi, which copies '
        "each layer's weights out of the stack")
    in_place_cache: bool = _lossless(
        "each layer's cache is a buffer of its own, written in place; off: a stack that is "
        'rebuilt in every step')
    matrix_weights: bool = _lossless(
        'weights are stored as the matrices that they are multiplied as; off: as openpi stores '
        'them, so that the compiler rearranges them in every step')
    folded_attention: bool = _lossless(
        'query heads that share keys are rows of one product; off: scores by head, transposed')
    flash_attention: bool = _lossless(
        'attention block by block, without a matrix of scores, for each shape for which that was '
        'measured to be faster; off: never', parameter='flash_attention.enabled')
    packed_prefix: bool = _lossless(
        'prompts are padded to the smallest declared bucket and attention goes by lengths; off: '
        'padded to max_token_len, right-aligned, under a dense mask')
    black_camera_cache: bool = _lossless(
        'the tokens of cameras that the robot lacks, which are black, are computed once; off: in '
        'every inference')
    cut_head: bool = _lossless(
        'logits of the ids that can occur only; off: of the whole vocabulary')
    constant_prefix: bool = _lossless(
        "'Action: ' goes through the decoder in one pass; off: one by one")
    early_stop: bool = _lossless(
        'decoding ends with the last coefficient; off: with EOS')
    device_resize: bool = _lossless(
        'pictures are resized on the device; off: by Pillow on the host')
    one_round_trip: bool = _lossless(
        'all stages are handed to the device at once; off: the host waits after each')
    quantized_weights: str = _lossy(
        'bits of the weights: int8, a scale for each output; int4, a scale for each group of '
        'inputs, with embedding and head in int8', 'quantization.weights', 'none', 'int8', 'int4')
    quantized_cache: str = _lossy(
        'bits of keys and values: int8, a scale for each token and head',
        'quantization.kv_cache', 'none', 'int8')
    pruning: bool = _setting(
        'image tokens that the action needs the least are left out of the prefix',
        'pruning.enabled', False, lossless=False)
    keep_ratio: float = _setting(
        'fraction of the image tokens that pruning keeps', 'pruning.keep_ratio', 0.5,
        lossless=False, bounds=(0.05, 1.0))
    adaptive: bool = _setting(
        'pruning keeps a quarter, three eighths or a half, as the scene needs, whatever '
        'pruning.keep_ratio is', 'pruning.adaptive', False, lossless=False)

    speculative: bool = _setting(
        'a drafter guesses ids, and one pass of the decoder says how many of them are right',
        'speculative.enabled', False, lossless=True)
    drafter: str = _setting(
        'what guesses: a head on the policy, the chunk before, or a table of frequent sequences',
        'speculative.drafter', 'head', lossless=True,
        choices=('head', 'previous_chunk', 'ngram'))
    draft_length: int = _setting(
        'ids guessed for a pass; 0: as many as pays by measured costs and acceptance, or none',
        'speculative.draft_length', 0, lossless=True, bounds=(0, LONGEST))
    tolerance: float = _setting(
        'guessed ids may differ from the right ones by this much in any action of a joint, in its '
        'unit, never of a gripper; 0: not at all', 'speculative.tolerance', 0.0, lossless=False,
        bounds=(0.0, 1.0))

    def __post_init__(self) -> None:
        for each in fields(self):
            choices, value = each.metadata.get('choices'), getattr(self, each.name)
            if choices and value not in choices:
                raise VariantError(f'{parameter_of(each.name)}: {value!r}, expected one of '
                                   f'{", ".join(choices)}')
            low, high = each.metadata.get('bounds') or (value, value)
            if not low <= value <= high:
                raise VariantError(f'{parameter_of(each.name)}: {value:g}, expected {low:g} to '
                                   f'{high:g}')
        for name, needed in NEEDS.items():
            if self.is_on(name) and not getattr(self, needed):
                raise VariantError(f'{parameter_of(name)}: {_word(getattr(self, name))}, expected '
                                   f'{parameter_of(needed)} to be true with it')

    def is_on(self, name: str) -> bool:
        """Tell whether a field is switched on."""
        return getattr(self, name) not in (False, 'none')

    @property
    def prunes(self) -> bool:
        """Tell whether it leaves image tokens out."""
        return self.pruning and (self.keep_ratio < 1 or self.adaptive)

    @property
    def name(self) -> str:
        """'default', 'reference', or what differs from the default: 'early_stop=false'."""
        if self == REFERENCE:
            return 'reference'
        changed = [f'{each.name}={_word(getattr(self, each.name))}'
                   for each in fields(self) if getattr(self, each.name) != each.default]
        return ','.join(changed) or 'default'


def _word(value: bool | str) -> str:
    return str(value).lower()


NEEDS = {'in_place_cache': 'unrolled_layers', 'matrix_weights': 'unrolled_layers',
         'flash_attention': 'packed_prefix', 'quantized_weights': 'matrix_weights',
         'quantized_cache': 'in_place_cache', 'pruning': 'packed_prefix',
         'speculative': 'in_place_cache'}
"""Fields that mean something only with another one on."""
LOSSLESS = tuple(each.name for each in fields(Variant) if each.default is True)
"""Switches of the default variant, none of which changes the tokens."""
REFERENCE = Variant(**dict.fromkeys(LOSSLESS, False))
"""The textbook path, as openpi takes it: what speeds are compared with."""


def parameter_of(name: str) -> str:
    """Return the name of the node's parameter for a field."""
    metadata = {each.name: each.metadata for each in fields(Variant)}[name]
    return metadata['parameter'] or f'engine.{name}'


def field_of(parameter: str) -> str:
    """Return the name of the field that a parameter of the node sets; a field's own is one, too.

    Raises:
        VariantError: there is no such field; the message lists them.
    """
    names = {each.name: each.name for each in fields(Variant)}
    names |= {parameter_of(name): name for name in names}
    if parameter not in names:
        raise VariantError(f'{parameter!r}: no switch of the engine, expected one of '
                           f'{", ".join(sorted(set(map(parameter_of, names.values()))))}')
    return names[parameter]


def alone(gain: str) -> Variant:
    """Return the reference with one gain on, and what that one needs."""
    return replace(REFERENCE, **{NEEDS.get(gain, gain): True, gain: True})
