"""The small text encoder is PyTorch's pre-norm transformer encoder."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from uvit_jax.errors import UvitError
from uvit_jax.tokens.modalities.text import Text

D, T, HEADS = 32, 6, 4


def text(**options):
    segment = Text(name="text", shape=(T,), vocab_size=50, **options)
    return segment.embedding(D, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_the_encoder_is_a_transformer_encoder():
    torch = pytest.importorskip("torch")
    ours = text(encoder_depth=2, encoder_heads=HEADS)
    layer = torch.nn.TransformerEncoderLayer(
        D, HEADS, 4 * D, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(
        layer, 2, norm=torch.nn.LayerNorm(D), enable_nested_tensor=False
    ).eval()

    def tensor(a):
        return torch.from_numpy(np.array(a))

    rng = np.random.default_rng(0)
    for block, layer in zip(ours.encoder.blocks, theirs.layers, strict=True):
        attention = block.attention
        for linear in (attention.query, attention.key, attention.value, block.fc1, attention.out):
            linear.bias[...] = jnp.asarray(rng.normal(size=linear.bias.shape), jnp.float32)
        qkv = [attention.query, attention.key, attention.value]
        state = {
            "self_attn.in_proj_weight": np.concatenate([m.kernel.reshape(D, D).T for m in qkv]),
            "self_attn.in_proj_bias": np.concatenate([m.bias.reshape(D) for m in qkv]),
            "self_attn.out_proj.weight": attention.out.kernel.reshape(D, D).T,
            "self_attn.out_proj.bias": attention.out.bias[...],
            "linear1.weight": block.fc1.kernel.T,
            "linear1.bias": block.fc1.bias[...],
            "linear2.weight": block.fc2.kernel.T,
            "linear2.bias": block.fc2.bias[...],
            **{
                f"norm{i}.{name}": value[...]
                for i, norm in ((1, block.norm1), (2, block.norm2))
                for name, value in (("weight", norm.scale), ("bias", norm.bias))
            },
        }
        layer.load_state_dict({name: tensor(value) for name, value in state.items()})

    ids = rng.integers(0, 50, (3, T))
    vectors = ours.table(jnp.asarray(ids)) + ours.encoder.positions[...]
    with torch.no_grad():
        expected = theirs(tensor(vectors)).numpy() @ np.array(ours.encoder.proj.kernel[...])
    np.testing.assert_allclose(ours(jnp.asarray(ids)), expected, atol=1e-4)


def test_without_an_encoder_a_token_is_its_vector():
    plain = text()
    ids = jnp.array([[1, 2, 3, 0, 0, 0]])
    np.testing.assert_array_equal(plain(ids), plain.table(ids))


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(UvitError, match="encoder_heads=5 does not divide the width 32"):
        text(encoder_depth=1, encoder_heads=5)
