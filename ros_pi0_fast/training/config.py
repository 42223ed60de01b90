"""The runs that can be reproduced by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from ros_pi0_fast.accel.quantization import Scheme
from ros_pi0_fast.model.config import GemmaConfig, Pi0FastConfig, SiglipConfig, get_config
from ros_pi0_fast.sim.episodes import EpisodeConfig
from ros_pi0_fast.sim.tasks import TASKS
from ros_pi0_fast.training.augment import AugmentConfig
from ros_pi0_fast.training.loop import LoopConfig


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """A round in which a policy drives and the expert labels."""

    episodes: int = 3000
    """Tasks take turns."""
    label_every: int = 2
    """Control steps between two labelled states."""
    linger_steps: int = 4
    max_lost: float = 0.5
    """Fraction of a shard's states whose way back may be too long even so; they are left out."""
    max_latency: int = 2
    """Each episode draws its latency from 0 to this many control steps."""
    execute: int = 5
    slots: int = 4
    """Episodes that a worker runs at once."""


@dataclass(frozen=True, kw_only=True)
class DaggerConfig(RoundConfig):
    """Rounds while a policy learns (Ross et al., arXiv:1011.0686)."""

    rounds: int = 4
    first: float = 0.25
    """Fraction of all steps after which the first round comes."""
    last: float = 0.75
    """Fraction of all steps after which the last round comes."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint of this package or of openpi: weights, tokenizers and statistics are kept."""

    checkpoint: Path
    text_tokenizer: Path | None = None
    """Instead of the checkpoint's, which openpi's have none of; and so the next."""
    fast_tokenizer: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """Everything that decides a policy's weights, but the machine."""

    name: str
    model: Pi0FastConfig
    """With `start`, only its dtype counts."""
    start: Start | None = None
    """What to fine-tune; None trains from nothing."""
    loop: LoopConfig
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    dagger: DaggerConfig = field(default_factory=DaggerConfig)
    expert: EpisodeConfig = field(default_factory=EpisodeConfig)
    expert_episodes: int
    tasks: tuple[str, ...] = TASKS
    fast_vocab_size: int = 384
    fast_scale: float = 20.0
    fast_margin: int = 256
    """Coefficient values beyond the expert's: a policy that still errs gets to places from which
    the way back is longer than any that the expert went."""
    pointing: float = 0.0
    """Weight of the loss of pointing at what is named: see training.pointing."""
    quantize: Scheme | None = None
    """Quantization to train for; the checkpoint that is written is then quantized."""
    capacity: int
    """Frames that the device holds at most. A batch, too, is counted in frames."""
    train_minutes: float = 0.0
    """Above 0: the number of steps follows from how fast the first ones are, so that all together
    take this long. Raise it to train a finished run further."""
    remat: str | None = None
    """Gradient checkpointing: a name in jax.checkpoint_policies."""
    unroll: bool = True
    """Compile layers one by one; False scans over them, which compiles faster."""
    seed: int = 0


def _tabletop() -> PolicyRun:
    return PolicyRun(
        name='tabletop',
        model=dataclasses.replace(get_config('tabletop'), dtype='bfloat16', first_token_offset=0),
        loop=LoopConfig(steps=14_000, batch_size=256, learning_rate=1e-3, warmup_steps=300,
                        weight_decay=1e-3, ema_decay=0.999, steps_per_dispatch=25,
                        checkpoint_every=2000),
        expert=EpisodeConfig(first_look_only=0.83), expert_episodes=60_000, capacity=280_000,
        pointing=0.3, train_minutes=5.2, dagger=DaggerConfig(rounds=1, episodes=1500, first=0.5))


def _tabletop_int4() -> PolicyRun:
    return PolicyRun(
        name='tabletop/int4',
        model=dataclasses.replace(get_config('tabletop'), dtype='bfloat16'),
        start=Start(checkpoint=Path('checkpoints/tabletop')), quantize=Scheme(weights='int4'),
        loop=LoopConfig(steps=2000, batch_size=256, learning_rate=2e-4, warmup_steps=50,
                        ema_decay=0.99, steps_per_dispatch=25, checkpoint_every=1000),
        expert=EpisodeConfig(first_look_only=0.83), expert_episodes=24_000, capacity=120_000,
        dagger=DaggerConfig(rounds=0))


def _smoke() -> PolicyRun:
    model = Pi0FastConfig(
        siglip=SiglipConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size=(16, 16),
                            image_size=(64, 64)),
        gemma=GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=2, num_kv_heads=1,
                          head_dim=32, vocab_size=1024),
        action_dim=5, action_horizon=10, max_token_len=80, first_token_offset=0,
        camera_keys=('base_0_rgb', 'wrist_0_rgb'))
    return PolicyRun(
        name='smoke', model=model, expert_episodes=24, capacity=2000,
        loop=LoopConfig(steps=60, batch_size=32, learning_rate=2e-3, warmup_steps=10,
                        steps_per_dispatch=10, checkpoint_every=1000),
        dagger=DaggerConfig(rounds=1, episodes=6, slots=3, first=0.5, last=0.5))


_RUNS = {'tabletop': _tabletop, 'tabletop_int4': _tabletop_int4, 'smoke': _smoke}


def get_run(name: str) -> PolicyRun:
    """Return a run by name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _RUNS:
        raise ValueError(f'run: {name!r}, expected one of {", ".join(_RUNS)}')
    return _RUNS[name]()
