"""A whole checkpoint folder: parameters, what they were trained for, tokenizers and statistics.

    params/                             parameters, as openpi writes them
    assets/<asset_id>/norm_stats.json   statistics, as openpi writes them
    assets/paligemma_tokenizer.model    text tokenizer
    assets/fast_tokenizer/              FAST tokenizer
    policy.json                         the contract; openpi writes none
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ros_pi0_fast.codec.contract import CONTRACT_FILE, OPENPI_FIRST_TOKEN_OFFSET, PolicyContract
from ros_pi0_fast.codec.policy_codec import (
    FAST_TOKENIZER_FOLDER,
    TEXT_TOKENIZER_FILE,
    PolicyCodec,
)
from ros_pi0_fast.codec.robot_profile import RobotProfile
from ros_pi0_fast.model.config import Pi0FastConfig, config_from_params
from ros_pi0_fast.weights.openpi import (
    CheckpointError,
    Place,
    Progress,
    load_params,
    save_params,
)

__all__ = ['Checkpoint', 'CheckpointError', 'load_checkpoint', 'save_checkpoint']


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What the engine runs."""

    params: Mapping[str, Any] | None
    """Nested dict with openpi's names, layers stacked; None where only quantized weights are
    stored."""
    config: Pi0FastConfig
    """The architecture, derived from the shapes of the parameters."""
    contract: PolicyContract | None
    """What the policy was trained for; None for an openpi checkpoint, which does not tell."""
    folder: Path
    quantized: Mapping[str, Any] = field(default_factory=dict)
    """'int8' or 'int4' -> parameters that are quantized already: see accel.quantization."""
    pruned_decoder: Mapping[str, Any] | None = None
    """PaliGemma/llm for when image tokens are pruned: see accel.pruning_file; None: the same."""


def load_checkpoint(folder: str | Path, profile: RobotProfile | None = None, *,
                    dtype: str | None = None, progress: Progress | None = None,
                    place: Place = lambda name, leaf: leaf, allow_extra: bool = False,
                    lora_scaling: float = 1.0) -> Checkpoint:
    """Read a checkpoint of this package or of openpi.

    What shapes do not tell (cameras, horizon, …) is taken from the checkpoint's policy.json, else
    from the profile. Whether the two agree is for codec.contract.check_contract to say.

    Args:
        folder: The checkpoint.
        profile: The robot; needed where the checkpoint has no policy.json.
        dtype: Of parameters and activations, 'float32' or 'bfloat16'; None for that in which the
            parameters are stored.
        progress: See load_params.
        place: See load_params.
        allow_extra: See load_params.
        lora_scaling: See load_params.

    Raises:
        CheckpointError: the parameters cannot be read; or there is neither a policy.json nor a
            profile.
        ContractError: policy.json cannot be read.
    """
    folder = Path(folder).resolve()
    has_contract = (folder / CONTRACT_FILE).is_file()
    contract = PolicyContract.load(folder) if has_contract else None
    if contract is None and profile is None:
        raise CheckpointError(f'{folder}: no {CONTRACT_FILE}, as in an openpi checkpoint: a robot '
                              'profile is needed to say which cameras and actions it is for')
    params = load_params(folder, dtype=dtype, progress=progress, place=place,
                         allow_extra=allow_extra, lora_scaling=lora_scaling)
    return Checkpoint(params=params, config=_config(folder, params, contract, profile),
                      contract=contract, folder=folder)


def _config(folder: Path, params: Mapping[str, Any], contract: PolicyContract | None,
            profile: RobotProfile | None) -> Pi0FastConfig:
    told = contract or PolicyContract.from_profile(
        profile, text_vocab_size=0, first_token_offset=OPENPI_FIRST_TOKEN_OFFSET)
    image, llm = params['PaliGemma']['img'], params['PaliGemma']['llm']
    patches = [size // patch for size, patch in zip(
        told.image_size, image['embedding']['kernel'].shape, strict=False)]
    # Pictures of another size than these are for check_contract to refuse, which names both.
    fits = math.prod(patches) == image['pos_embedding'].shape[1]
    try:
        return config_from_params(
            params, action_dim=told.action_dim, action_horizon=told.action_horizon,
            max_token_len=told.max_token_len, camera_keys=told.camera_keys,
            image_size=told.image_size if fits else None,
            dtype=np.dtype(llm['embedder']['input_embedding'].dtype).name,
            first_token_offset=told.first_token_offset)
    except ValueError as error:
        raise CheckpointError(f'{folder}: {error}') from error


def save_checkpoint(folder: str | Path, params: Mapping[str, Any], codec: PolicyCodec) -> Path:
    """Write a checkpoint that needs nothing else: parameters and all that the codec holds.

    Args:
        folder: Where to; it must not have parameters yet.
        params: Nested dict of float32 or bfloat16 arrays, layers stacked.
        codec: With which the policy was trained.

    Returns:
        The folder.

    Raises:
        CheckpointError: see save_params.
    """
    folder = Path(folder).resolve()
    save_params(folder, params)
    save_assets(folder, codec)
    return folder


def save_assets(folder: Path, codec: PolicyCodec) -> None:
    """Write what a checkpoint holds besides parameters: statistics, tokenizers, contract."""
    assets = folder / 'assets'
    codec.contract.save(folder)
    codec.norm_stats.save(assets / codec.contract.asset_id / 'norm_stats.json')
    codec.fast.save(assets / FAST_TOKENIZER_FOLDER)
    shutil.copyfile(codec.text.source, assets / TEXT_TOKENIZER_FILE)
