"""A drafter that is a small decoder: fewer layers, narrower, reading the target's image tokens.

Speculative decoding with a draft model (Leviathan et al., arXiv:2211.17192). It is a Pi0Fast whose
vision part is the target's: image tokens come through a learned linear map where the widths
differ. It has a cache of its own, rolled back as the target's is.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from ros_pi0_fast.accel.drafters import Prefix, Proposal, Rules, SoFar
from ros_pi0_fast.accel.equations import find_equations, path_of
from ros_pi0_fast.accel.matrices import Form, Matrices
from ros_pi0_fast.model import gemma
from ros_pi0_fast.model.cache import KVCache
from ros_pi0_fast.model.decode import Progress
from ros_pi0_fast.model.einsum import Weight, einsum
from ros_pi0_fast.model.gemma import take_token
from ros_pi0_fast.model.layers import Params
from ros_pi0_fast.model.pi0_fast import Pi0Fast

IMAGE_MAP = 'image_map'


def init_draft(model: Pi0Fast, image_width: int, rng: jax.Array) -> Params:
    """Return random float32 parameters of a small decoder, stacked.

    Args:
        model: The target's config, but for a smaller `gemma`, of the same vocabulary.
        image_width: Of the target's image tokens.
        rng: Key.

    Returns:
        'PaliGemma'/'llm' as openpi names it; and IMAGE_MAP [image_width, d] if the widths differ.
    """
    llm, image_map = jax.random.split(rng)
    config = model.config.gemma
    params = {'PaliGemma': {'llm': gemma.init_gemma(config, model.attend, llm)}}
    if config.width != image_width:
        params[IMAGE_MAP] = nn.initializers.lecun_normal()(image_map, (image_width, config.width))
    return params


def map_images(params: Params, images: jax.Array) -> jax.Array:
    """Return the target's image tokens [..., n, d_target] as the draft takes them: [..., n, d]."""
    if IMAGE_MAP not in params:
        return images
    return einsum('...d,de->...e', images, params[IMAGE_MAP])


def to_fast_form(model: Pi0Fast, params: Params) -> Params:
    """Return a draft's stacked parameters as decoding reads them best: unrolled, as matrices."""
    llm = params['PaliGemma']['llm']
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], llm['layers'])
                   for i in range(model.config.gemma.depth))
    vision = jax.eval_shape(model.init, jax.random.key(0))['PaliGemma']['img']
    unrolled = {'PaliGemma': {'llm': {**llm, 'layers': layers}}}
    equations = find_equations(model, {'PaliGemma': {**unrolled['PaliGemma'], 'img': vision}})

    def convert(keys: tuple, leaf: jax.Array) -> jax.Array | Matrices:
        eqn = equations.get(path_of(keys))
        return leaf if eqn is None or not Form.fits(eqn) else Matrices.of(leaf, eqn)

    return {**params, **jax.tree_util.tree_map_with_path(convert, unrolled)}


@flax.struct.dataclass
class DraftState:
    """What the small decoder remembers."""

    cache: KVCache
    """Of the prefix and of the ids that were fed."""
    prefix: jax.Array
    """int32 [1]: tokens of the prefix."""
    last: jax.Array
    """int32 [1]: model id of the last of them."""
    fed: jax.Array
    """int32 []: ids after the prefix that were fed, of which the last may have been refused."""
    head: Weight
    """The output head's rows of the candidates."""
    key: jax.Array | None
    """For drawing; None where the likeliest is proposed."""


@flax.struct.dataclass
class DraftModel:
    """Proposes what a small decoder would choose, likeliest or drawn as the rules say."""

    params: Mapping
    """See init_draft and to_fast_form."""
    model: Pi0Fast = flax.struct.field(pytree_node=False)

    def start(self, prefix: Prefix, rules: Rules, length: int,
              key: jax.Array | None) -> DraftState:
        """Run the prefix through the small decoder: see Drafter."""
        model, params = self.model, self.params
        with jax.named_scope('draft_prefill'):
            images = map_images(params, prefix.images[None].astype(model.dtype))
            embeddings = jnp.concatenate(
                [images, model.embed_tokens(params, prefix.prompt[None])], axis=1)
            tokens = (images.shape[1] + prefix.prompt_length.astype(jnp.int32))[None]
            cache = model.init_cache(params, 1, embeddings.shape[1] + len(prefix.before)
                                     + rules.max_ids + length)
            _, cache = model.prefill(params, embeddings, tokens, cache, last_only=True)
            if len(prefix.before):
                _, cache = model.decode_step(params, prefix.before[None], cache)
            last = prefix.before[-1:] if len(prefix.before) else prefix.prompt[
                prefix.prompt_length - 1][None]
            return DraftState(
                cache=cache, prefix=cache.length, last=last, fed=jnp.zeros((), jnp.int32), key=key,
                head=model.head(params, rules.candidates))

    def propose(self, state: DraftState, so_far: SoFar, rules: Rules, length: int,
                ) -> tuple[Proposal, DraftState]:
        """Propose id after id: see Drafter."""
        with jax.named_scope('draft'):
            hidden, state = self._catch_up(state, so_far, rules)
            first, now = self._choose(hidden, so_far.progress, so_far.count, rules, state)

            def step(carry: tuple, chosen: jax.Array) -> tuple:
                column, progress, state = carry
                hidden, cache = self.model.decode_step(
                    self.params, rules.model_ids(column)[None], state.cache)
                choice, now = self._choose(hidden, progress, chosen, rules,
                                           state.replace(cache=cache))
                return now, choice

            later = so_far.count + jnp.arange(1, length, dtype=jnp.int32)
            (_, _, state), rest = jax.lax.scan(step, now, later)
            choices = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first,
                                   rest)
            return choices, state.replace(fed=so_far.count + length - 1)

    def _catch_up(self, state: DraftState, so_far: SoFar, rules: Rules,
                  ) -> tuple[jax.Array, DraftState]:
        """Feed the ids chosen since, one or two; return the output [1, 1, d] at the last.

        Of what was proposed all but the last was fed. Where all was accepted, that one is missing
        beside the target's own; otherwise its own is. A pass over two costs what one over one
        does: where only one is missing, the second is whatever follows, and is taken back. Before
        the first id it is the prefix's last token that is fed again.
        """
        fed = jnp.minimum(state.fed, so_far.count - 1)
        ids = rules.model_ids(jax.lax.dynamic_slice(so_far.ids, (fed,), (2,)))
        ids = jnp.where(fed < 0, state.last, ids)
        hidden, cache = self.model.decode_step(
            self.params, ids[None], state.cache.replace(length=state.prefix + fed))
        cache = cache.replace(length=state.prefix + so_far.count)
        return (take_token(hidden, (so_far.count - fed - 1)[None]), state.replace(cache=cache))

    def _choose(self, hidden: jax.Array, progress: Progress | None, chosen: jax.Array,
                rules: Rules, state: DraftState) -> tuple[Proposal, tuple]:
        """Choose one id after hidden [1, 1, d].

        Returns:
            It, with shapes [] and [n]; and the column int32 [1], the progress after it, and the
            state that the next step starts with.
        """
        scores = rules.mask(self.model.project(hidden[:, 0], state.head), progress, chosen[None])
        column, probabilities, key = rules.choose(scores, state.key)
        state = state.replace(key=key)
        now = (column, rules.advance(progress, column), state)
        return Proposal(ids=column[0], probabilities=probabilities), now
