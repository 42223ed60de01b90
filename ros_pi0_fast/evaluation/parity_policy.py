"""Parity from raw observations to robot actions, on folders like golden/policy_libero."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ros_pi0_fast.codec.fast import MalformedChunkError
from ros_pi0_fast.codec.policy_codec import EncodedObservation, ObservationError, PolicyCodec
from ros_pi0_fast.codec.robot_profile import ActionSpec, CameraSource, RobotProfile, StateSpec
from ros_pi0_fast.evaluation.parity_report import FolderError, Row, entry, read_arrays, read_json
from ros_pi0_fast.model.config import config_from_params
from ros_pi0_fast.model.decode import DecodeOptions, DecodeState, greedy
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast
from ros_pi0_fast.model.resize import resize_with_pad
from ros_pi0_fast.types import Observation
from ros_pi0_fast.weights.openpi import load_params

ACTIONS = 1e-4
STATE = 1e-6
EOS_ID = 1
DTYPES = ('float32', 'bfloat16')


@dataclass(frozen=True, kw_only=True)
class RawKeys:
    """Where one of openpi's robots has its pictures and its state."""

    images: Mapping[str, str]
    """Model image key -> name in the raw observation; other cameras are black."""
    state: tuple[str, ...]
    """Names in the raw observation, to be joined."""


# openpi's policies/libero_policy.py and droid_policy.py.
RAW_KEYS = {
    'libero': RawKeys(
        images={'base_0_rgb': 'image', 'left_wrist_0_rgb': 'wrist_image'}, state=('state',)),
    'droid': RawKeys(
        images={'base_0_rgb': 'exterior_image_1_left', 'wrist_0_rgb': 'wrist_image_left'},
        state=('joint_position', 'gripper_position')),
}


class Errors:
    """The largest error of each quantity so far, and in which examples entries differed."""

    def __init__(self) -> None:
        self._largest: dict[str, float] = {}
        self._tolerance: dict[str, float] = {}
        self._examples: dict[str, list[str]] = defaultdict(list)

    def add(self, name: str, example: str, error: float, tolerance: float = 0.0) -> None:
        """Take an example's error into account."""
        self._largest[name] = max(self._largest.get(name, 0.0), error)
        self._tolerance[name] = tolerance
        if not error <= tolerance:
            self._examples[name].append(example)

    def rows(self) -> Iterator[Row]:
        """Return a row a quantity."""
        for name, error in self._largest.items():
            failed = self._examples[name]
            yield Row(name=name, error=error, tolerance=self._tolerance[name],
                      note=f'example {", ".join(failed)}' if failed else '')


def policy_rows(folder: Path) -> Iterator[Row]:
    """Compare what a folder like golden/policy_libero records.

    Raises:
        FolderError: a file is missing or damaged, or the robot is one that is not known here.
        CheckpointError, ContractError, FastTokenizerError, TextTokenizerError, NormStatsError:
            something in the folder cannot be read, or does not fit.
    """
    path = folder / 'description.json'
    description, arrays = read_json(path), read_arrays(folder / 'examples.npz')
    examples = entry(description, 'examples', path)
    keys = _raw_keys(path, str(entry(description, 'openpi_config', path)))
    observations = {str(i): _observation(keys, arrays, str(i), example['prompt'], path)
                    for i, example in enumerate(examples)}
    profile = _profile(path, description, keys, len(observations['0'].state))
    codec = PolicyCodec.from_checkpoint(
        folder / 'checkpoint', profile, text_tokenizer=folder / 'paligemma_tokenizer.model',
        fast_tokenizer=folder / 'fast_tokenizer')
    errors, encoded = Errors(), {}
    for index, observation in observations.items():
        try:
            encoded[index] = codec.encode(observation)
        except ObservationError as error:
            yield Row.skip(f'policy: example {index}', f'refused, where openpi cuts it: {error}')
            continue
        _compare_inputs(errors, codec, encoded[index], arrays, index)
        if f'{index}/train/actions_raw' in arrays:
            _compare_training(errors, codec, observation, arrays, index)
    yield from errors.rows()
    for dtype in DTYPES:
        params = load_params(folder / 'checkpoint', dtype=dtype)
        yield from _dtype_rows(dtype, params, codec, encoded, arrays,
                               int(description.get('max_decoding_steps', 256)))


def _raw_keys(path: Path, config: str) -> RawKeys:
    for robot, keys in RAW_KEYS.items():
        if robot in config:
            return keys
    raise FolderError(f'{path}: openpi_config: {config!r}, expected one for '
                      f'{" or ".join(RAW_KEYS)}')


def _observation(keys: RawKeys, arrays: Mapping[str, np.ndarray], index: str, prompt: str,
                 path: Path) -> Observation:
    def raw(name: str) -> np.ndarray:
        return entry(dict(arrays), f'{index}/obs/observation/{name}', path.parent / 'examples.npz')

    return Observation(
        images={camera: _picture(raw(name)) for camera, name in keys.images.items()},
        state=np.concatenate([np.atleast_1d(raw(name)) for name in keys.state]),
        instruction=prompt)


def _picture(image: np.ndarray) -> np.ndarray:
    """Turn a picture of a raw observation into uint8 [h, w, 3], as openpi's _parse_image does."""
    if np.issubdtype(image.dtype, np.floating):
        image = (255 * image).astype(np.uint8)
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image


def _profile(path: Path, description: dict[str, Any], keys: RawKeys, state_dim: int,
             ) -> RobotProfile:
    """Return the robot that a description tells of; names that do not matter are numbers."""
    dim = int(entry(description, 'action_dim', path))
    delta = 'DeltaActions' in entry(description, 'input_transforms', path)
    size = int(entry(description, 'image_size', path))
    return RobotProfile(
        name=str(description['openpi_config']), asset_id=str(entry(description, 'asset_id', path)),
        cameras={key: CameraSource(topic=name, transport='raw')
                 for key, name in keys.images.items()},
        absent_cameras=tuple(sorted(set(entry(description, 'camera_order', path))
                                    - set(keys.images))),
        state=StateSpec(joints=tuple(f'state {i}' for i in range(state_dim))),
        actions=ActionSpec(
            names=tuple(f'action {i}' for i in range(dim)), mode='delta' if delta else 'absolute',
            # openpi's delta masks leave the gripper alone, which comes last.
            delta_mask=tuple(delta and i < dim - 1 for i in range(dim)), gripper=(dim - 1,),
            horizon=int(entry(description, 'action_horizon', path)), units=('1',) * dim,
            limits=None),
        normalization='quantile' if description.get('use_quantile_norm', True) else 'z-score',
        control_rate_hz=1.0, max_token_len=int(entry(description, 'max_token_len', path)),
        image_size=(size, size), first_token_offset=None, source=path)


def _differing(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return how many entries differ; all of them where the shapes do."""
    if np.shape(actual) != np.shape(expected):
        return float(max(np.size(actual), np.size(expected)))
    return float(np.sum(np.asarray(actual) != expected))


def _compare_inputs(errors: Errors, codec: PolicyCodec, encoded: EncodedObservation,
                    arrays: Mapping[str, np.ndarray], index: str) -> None:
    prompt = arrays[f'{index}/model_in/tokenized_prompt']
    count = int(arrays[f'{index}/model_in/tokenized_prompt_mask'].sum())
    errors.add('policy: prompt ids', index, _differing(encoded.prompt_ids, prompt[:count]))
    state = arrays[f'{index}/model_in/state'][:len(encoded.normalized_state)]
    errors.add('policy: normalized state', index,
               float(np.abs(encoded.normalized_state - state).max()), STATE)
    for camera, image in encoded.images.items():
        expected = arrays.get(f'{index}/model_in/image/{camera}')
        if expected is not None:
            resized = resize_with_pad(jnp.asarray(image), *codec.profile.image_size)
            errors.add('policy: resized images', index, _differing(resized, expected))


def _compare_training(errors: Errors, codec: PolicyCodec, observation: Observation,
                      arrays: Mapping[str, np.ndarray], index: str) -> None:
    raw = arrays[f'{index}/train/actions_raw']
    normalized = codec.normalize_actions(raw, observation.state)
    errors.add('policy: training, normalized actions', index,
               float(np.abs(normalized - arrays[f'{index}/train/actions']).max()), STATE)
    example = codec.encode_example(observation, raw)
    for name, key in (('tokens', 'tokenized_prompt'), ('token_mask', 'tokenized_prompt_mask'),
                      ('ar_mask', 'token_ar_mask'), ('loss_mask', 'token_loss_mask')):
        errors.add(f'policy: training, {name.replace("_", " ")}', index,
                   _differing(getattr(example, name), arrays[f'{index}/train/{key}']))


@partial(jax.jit, static_argnums=0, static_argnames='max_ids')
def _generate(model: Pi0Fast, params: Params, images: dict[str, jax.Array], prompt: jax.Array,
              length: jax.Array, *, max_ids: int) -> DecodeState:
    """Decode freely from uint8 pictures and a padded prompt [1, t] of some length [1]."""
    height, width = model.config.siglip.image_size
    pictures = {key: resize_with_pad(image, height, width) for key, image in images.items()}
    embeddings = jnp.concatenate([model.embed_images(params, pictures),
                                  model.embed_tokens(params, prompt)], axis=1)
    cache = model.init_cache(params, 1, embeddings.shape[1] + max_ids)
    hidden, cache = model.prefill(params, embeddings, model.config.num_image_tokens + length,
                                  cache, last_only=True)
    return greedy(model, params, hidden, cache,
                  options=DecodeOptions(max_ids=max_ids, eos_id=EOS_ID))


def _dtype_rows(dtype: str, params: Params, codec: PolicyCodec,
                encoded: Mapping[str, EncodedObservation], arrays: Mapping[str, np.ndarray],
                max_ids: int) -> Iterator[Row]:
    profile = codec.profile
    model = Pi0Fast(config_from_params(
        params, action_dim=profile.action_dim, action_horizon=profile.horizon,
        max_token_len=profile.max_token_len, camera_keys=profile.camera_keys,
        image_size=profile.image_size, dtype=dtype))
    split, errors, refused = model.unroll(jax.tree.map(jnp.asarray, params)), Errors(), 0
    black = np.zeros((*profile.image_size, 3), np.uint8)
    for index, observation in encoded.items():
        images = {key: jnp.asarray(observation.images.get(key, black))[None]
                  for key in profile.camera_keys}
        prompt = np.zeros((1, profile.max_token_len), np.int32)
        prompt[0, :len(observation.prompt_ids)] = observation.prompt_ids
        state = _generate(model, split, images, jnp.asarray(prompt),
                          jnp.array([len(observation.prompt_ids)], jnp.int32), max_ids=max_ids)
        tokens = np.asarray(state.tokens[0])
        errors.add(f'policy {dtype}: tokens', index,
                   _differing(tokens, arrays[f'{index}/{dtype}/tokens']))
        try:
            actions = codec.decode(tokens, observation)
        except MalformedChunkError:
            refused += 1
            # openpi makes zeros of these, which nothing may be equal to.
            zero = arrays.get(f'{index}/{dtype}/normalized_actions',
                              arrays[f'{index}/float32/normalized_actions'])
            errors.add(f'policy {dtype}: refused where openpi returns zeros', index,
                       float(np.count_nonzero(zero)))
            continue
        errors.add(f'policy {dtype}: actions', index, float(np.abs(
            actions - arrays[f'{index}/{dtype}/actions']).max()), ACTIONS)
    yield from errors.rows()
