"""UniDiffuser's caption decoder: CLIP's text features to 64 numbers a token, and back to words.

    decoder, params = load_caption_decoder(path)             # of caption_weights
    text_BTF = decoder.reduce(params, hidden_BTD)            # (B, 77, 768) → (B, 77, 64)
    ids_BN, lengths_B = decoder.captions(params, text_BTF)   # by beam search

A linear layer reduces the features; another one makes them the prefix of a GPT-2, which was trained
to continue it with the caption (Mokady et al. 2021, "ClipCap"; Bao et al. 2023, section 4.3).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from uvit_jax.encoders.clip import KeysValues, Tower, TowerConfig, linear
from uvit_jax.errors import UvitError
from uvit_jax.models.pure_network import Params, PureNetwork


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionConfig(TowerConfig):
    """The decoder's GPT-2 and its prefix.

    Attributes:
      vocab_size: ids; the last one ends a caption. length: positions, 1024 as published.
      features: D of the text encoder, 768. reduced: F of the diffusion model's text, 64.
    """

    vocab_size: int
    length: int = 1024
    features: int = 768
    reduced: int = 64

    @property
    def eos(self) -> int:
        """The id that ends a caption."""
        return self.vocab_size - 1


class CaptionNetwork(Tower):
    """A GPT-2 (pre-norm, causal, its logits from the table of its tokens) and the prefix's
    layers."""

    def __init__(self, config: CaptionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        dtype = jnp.dtype(config.dtype)
        self.tokens = nnx.Embed(config.vocab_size, config.width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((config.length, config.width)))
        self.encode_prefix = linear(config, config.features, config.reduced, rngs)
        self.decode_prefix = linear(config, config.reduced, config.width, rngs)

    def continued(
        self, x_BND: jax.Array, past_L: KeysValues | None, start: jax.Array | int
    ) -> tuple[jax.Array, KeysValues | None]:
        """Embedded tokens from position `start` on → logits float32 (B, N, V), keys and values."""
        positions_ND = jax.lax.dynamic_slice_in_dim(self.positions[...], start, x_BND.shape[1])
        x_BND, past_L = self.run_from(x_BND + positions_ND.astype(x_BND.dtype), past_L, start)
        h_BND, table_VD = self.norm(x_BND), self.tokens.embedding[...]
        options = dict(precision=self.decode_prefix.precision, preferred_element_type=jnp.float32)
        return jnp.einsum("bnd,vd->bnv", h_BND, table_VD.astype(h_BND.dtype), **options), past_L


class Beams(NamedTuple):
    """The state of a beam search with K beams for each of B texts.

    Attributes:
      ids_BKN: their tokens. scores_BK: sums of log-probabilities. lengths_BK: tokens, the end
      included. ended_BK: whether they have one.
    """

    ids_BKN: jax.Array
    scores_BK: jax.Array
    lengths_BK: jax.Array
    ended_BK: jax.Array


class CaptionDecoder(PureNetwork):
    """The decoder as pure functions.

    Attributes:
      config: its `CaptionConfig`.
      abstract_params: the shapes and dtypes of the parameters.
    """

    def __init__(self, config: CaptionConfig):
        super().__init__(config, functools.partial(CaptionNetwork, config))

    def reduce(self, params: Params, hidden_BTD: Any) -> jax.Array:
        """CLIP's text features (B, T, D) → the diffusion model's text, float32 (B, T, F)."""
        self._check(hidden_BTD, self.config.features, "features")
        network = nnx.merge(self._graph, params)
        return network.encode_prefix(jnp.asarray(hidden_BTD)).astype(jnp.float32)

    def logits(self, params: Params, text_BTF: Any, ids_BN: Any) -> jax.Array:
        """Logits float32 (B, T + N, V) at every position of the prefix and of a caption's ids."""
        self._check(text_BTF, self.config.reduced, "a text")
        network = nnx.merge(self._graph, params)
        prefix_BTD = network.decode_prefix(jnp.asarray(text_BTF))
        x_BND = jnp.concatenate([prefix_BTD, network.tokens(jnp.asarray(ids_BN))], axis=1)
        return network.continued(x_BND, None, 0)[0]

    def captions(
        self, params: Params, text_BTF: Any, *, beams: int = 5, length: int = 67
    ) -> tuple[jax.Array, jax.Array]:
        """The captions of texts by beam search over the mean log-probability of a token.

        A beam that has ended keeps its score, and competes with the others.

        Args:
          text_BTF: float (B, T, F). beams: K. length: N, the largest number of tokens.

        Returns:
          Token ids int32 (B, N), and how many of them are the caption, its end included, (B,).

        Raises:
          UvitError: if the text has another shape, or the positions do not suffice.
        """
        self._check(text_BTF, self.config.reduced, "a text")
        if np.shape(text_BTF)[1] + length > self.config.length or min(beams, length) < 1:
            raise UvitError(
                f"a prefix of {np.shape(text_BTF)[1]} and length={length} tokens must fit into "
                f"{self.config.length} positions, and beams={beams} and length be at least 1"
            )
        return self._search(params, jnp.asarray(text_BTF), beams, length)

    @functools.partial(jax.jit, static_argnums=(0, 3, 4))
    def _search(
        self, params: Params, text_BTF: jax.Array, K: int, N: int
    ) -> tuple[jax.Array, jax.Array]:
        network, (B, T, _) = nnx.merge(self._graph, params), text_BTF.shape
        config, V = self.config, self.config.vocab_size
        heads = (config.num_heads, config.width // config.num_heads)
        empty = jnp.zeros((config.depth, B, T + N, *heads), jnp.dtype(config.dtype))
        logits_BTV, past_L = network.continued(network.decode_prefix(text_BTF), (empty, empty), 0)
        scores_BK, first_BK = jax.lax.top_k(nnx.log_softmax(logits_BTV[:, -1]), K)
        past_L = jax.tree.map(lambda a: jnp.repeat(a, K, axis=1), past_L)
        beams = Beams(
            jnp.zeros((B, K, N), jnp.int32).at[:, :, 0].set(first_BK),
            scores_BK,
            jnp.ones((B, K), jnp.int32),
            first_BK == config.eos,
        )
        # A beam that has ended has one continuation, of probability 1 and length 0.
        stay_V = jnp.where(jnp.arange(V) == 0, 0.0, -jnp.inf)

        def step(state: tuple) -> tuple:
            n, beams, past_L = state
            last_BK = beams.ids_BKN[:, :, n - 1]
            embedded = network.tokens(last_BK.reshape(B * K, 1))
            logits, past_L = network.continued(embedded, past_L, T + n - 1)
            log_p_BKV = nnx.log_softmax(logits.reshape(B, K, V))
            log_p_BKV = jnp.where(beams.ended_BK[..., None], stay_V, log_p_BKV)
            lengths_BK = beams.lengths_BK + ~beams.ended_BK
            means = (beams.scores_BK[..., None] + log_p_BKV) / lengths_BK[..., None]
            means_BK, chosen_BK = jax.lax.top_k(means.reshape(B, K * V), K)
            source_BK, next_BK = chosen_BK // V, chosen_BK % V

            def of_source(a: jax.Array) -> jax.Array:
                return jax.vmap(lambda rows, source: rows[source])(a, source_BK)

            lengths_BK, ended_BK = of_source(lengths_BK), of_source(beams.ended_BK)
            beams = Beams(
                of_source(beams.ids_BKN).at[:, :, n].set(next_BK.astype(jnp.int32)),
                means_BK * lengths_BK,
                lengths_BK,
                ended_BK | (next_BK == config.eos),
            )
            rows = (jnp.arange(B)[:, None] * K + source_BK).reshape(-1)
            return n + 1, beams, jax.tree.map(lambda a: a[:, rows], past_L)

        _, beams, _ = jax.lax.while_loop(
            lambda state: (state[0] < N) & ~state[1].ended_BK.all(), step, (1, beams, past_L)
        )
        best_B = jnp.argmax(beams.scores_BK / beams.lengths_BK, axis=1)
        rows_B = jnp.arange(B)
        return beams.ids_BKN[rows_B, best_B], beams.lengths_BK[rows_B, best_B]

    def _check(self, values: Any, size: int, what: str) -> None:
        if np.ndim(values) != 3 or np.shape(values)[-1] != size:
            raise UvitError(
                f"the caption decoder takes {what} (B, T, {size}), got {np.shape(values)}"
            )
