"""UniDiffuser's caption decoder computes and generates what diffusers' and transformers' do."""

import json

import jax
import numpy as np
import pytest

from uvit_jax.encoders.caption_decoder import CaptionConfig, CaptionDecoder
from uvit_jax.encoders.caption_weights import load_caption_decoder, load_captioner
from uvit_jax.errors import UvitError

T, D, F, V, LENGTH = 7, 12, 6, 40, 90


@pytest.fixture(scope="module")
def reference():
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the extra `test`")
    torch.manual_seed(0)
    theirs = diffusers.UniDiffuserTextDecoder(
        prefix_length=T,
        prefix_inner_dim=D,
        prefix_hidden_dim=F,
        vocab_size=V,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=3,
        n_head=4,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    gpt = theirs.transformer.transformer
    for parameter in (theirs.decode_prefix.weight, gpt.wpe.weight):
        torch.nn.init.normal_(parameter)
    with torch.no_grad():  # so that some captions end early
        gpt.wte.weight[V - 1] += 2.4 * gpt.ln_f.bias / gpt.ln_f.bias.square().sum()
    return theirs


@pytest.fixture(scope="module")
def folder(reference, tmp_path_factory):
    path = tmp_path_factory.mktemp("pipeline")
    reference.save_pretrained(path / "text_decoder", safe_serialization=False)
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return load_caption_decoder(folder)


def texts(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, T, F)).astype(np.float32)


def close(a, b):
    assert a.shape == b.shape
    assert np.abs(np.asarray(a) - b).max() < 1e-4 * np.abs(b).max()


def test_outputs_equal_the_reference(reference, ours):
    import torch

    decoder, params = ours
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, T, D)).astype(np.float32)
    ids = rng.integers(0, V, (3, 9))
    with torch.no_grad():
        reduced = reference.encode(torch.tensor(hidden))
        logits = reference(torch.tensor(ids), torch.tensor(hidden))[0].logits
    close(decoder.reduce(params, hidden), reduced.numpy())
    close(jax.jit(decoder.logits)(params, reduced.numpy(), ids), logits.numpy())


def test_beam_search_finds_the_same_tokens(reference, ours):
    """Also where some captions end early and others not at all."""
    import torch

    decoder, params = ours
    text, N = texts(8), 20
    ids, lengths = map(np.asarray, decoder.captions(params, text, length=N))
    assert len(set(lengths.tolist())) > 2 and lengths.max() == N  # or the search would be easy
    for row in range(len(text)):
        with torch.no_grad():
            prefix = reference.decode_prefix(torch.tensor(text[row : row + 1]))
            expected, counts = reference.generate_beam(
                input_embeds=prefix, device="cpu", entry_length=N, eos_token_id=V - 1
            )
        count = int(counts[0])
        assert lengths[row] == count
        assert ids[row, :count].tolist() == expected[0, :count].tolist()


def test_one_beam_is_greedy(ours):
    decoder, params = ours
    text, N = texts(2, seed=3), 5
    ids, lengths = map(np.asarray, decoder.captions(params, text, beams=1, length=N))
    for row in range(2):
        known = ids[row : row + 1, : lengths[row]]
        logits = np.asarray(decoder.logits(params, text[row : row + 1], known))[0]
        assert known[0].tolist() == logits[T - 1 : -1].argmax(-1).tolist()


def test_the_official_file_is_read(reference, ours, tmp_path):
    import torch

    tensors = {
        f"module.gpt.{k.removeprefix('transformer.')}" if k.startswith("transformer.") else k: v
        for k, v in reference.state_dict().items()
    }
    tensors |= {f"module.{k}": tensors.pop(k) for k in list(tensors) if "prefix" in k}
    tensors["module.gpt.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    torch.save(tensors, tmp_path / "caption_decoder.pth")
    for path in (tmp_path, tmp_path / "caption_decoder.pth"):
        decoder, params = load_caption_decoder(path)
        # 4 heads of 16 numbers do not follow from shapes.
        assert decoder.config.num_heads == 1
        jax.tree.map(np.testing.assert_array_equal, params, ours[1])


def test_published_size():
    config = CaptionConfig(
        width=768, depth=12, num_heads=12, mlp_width=3072, vocab_size=50258, activation="gelu_tanh"
    )
    decoder = CaptionDecoder(config)
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(decoder.abstract_params))
    assert count == 124_439_808 + 768 + (768 + 1) * 64 + (64 + 1) * 768  # GPT-2 small, one id more
    assert config.eos == 50257


def test_captions_are_words(folder, tmp_path):
    pytest.importorskip("transformers", reason="transformers is the extra `text`")
    tokenizer = folder / "text_tokenizer"
    tokenizer.mkdir(exist_ok=True)
    words = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", *(f"Ġ{c}" for c in "abcdefghijkl"), "<|EOS|>"]
    assert len(words) == V
    (tokenizer / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    captioner = load_captioner(folder)
    text = texts(3)
    captions = captioner(text)
    ids, lengths = map(np.asarray, captioner.decoder.captions(captioner.params, text))
    for caption, row, length in zip(captions, ids, lengths, strict=True):
        expected = "".join(words[i].replace("Ġ", " ") for i in row[:length] if i != V - 1)
        assert caption == expected.strip()


def test_bad_files_and_inputs_raise(ours, tmp_path):
    decoder, params = ours
    with pytest.raises(UvitError, match=rf"\(B, T, {F}\), got \(1, {T}, {D}\)"):
        decoder.captions(params, np.zeros((1, T, D)))
    with pytest.raises(UvitError, match=f"{LENGTH} positions"):
        decoder.captions(params, texts(1), length=LENGTH)
    with pytest.raises(UvitError, match=r"none of .*caption_decoder\.pth"):
        load_caption_decoder(tmp_path)
    np.savez(tmp_path / "x.npz")
    (tmp_path / "caption_decoder.pth").write_bytes(b"no tensors")
    with pytest.raises(UvitError, match=r"caption_decoder\.pth"):
        load_caption_decoder(tmp_path)


def test_a_missing_tokenizer_is_named(reference, tmp_path):
    reference.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(UvitError, match="text_tokenizer"):
        load_captioner(tmp_path)
