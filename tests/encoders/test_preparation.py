"""Pictures are resized as Pillow and PyTorch do it, and cut out where each library does."""

import numpy as np
import pytest
from PIL import Image

from tests.helpers.frozen import pictures
from uvit_jax.encoders import preparation as p
from uvit_jax.encoders.image_encoder import encoder
from uvit_jax.errors import UvitError


def levels(found, moments=p.IMAGENET):
    mean, std = (np.asarray(m) for m in moments)
    return np.asarray((np.asarray(found) * std + mean) * 255)


@pytest.mark.parametrize("shape", [(40, 61), (70, 50), (17, 23), (33, 32)])
@pytest.mark.parametrize("kind", ["bicubic", "bilinear"])
def test_resizing_is_pillows(shape, kind):
    image = pictures(1, 90)[0, : shape[0], : shape[1]]
    H, W = shape
    size = tuple(int(32 * side / min(H, W)) for side in (W, H))
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[kind]
    wanted = np.asarray(Image.fromarray(image).resize(size, method), np.float32)
    top, left = (round((side - 28) / 2) for side in wanted.shape[:2])
    prepare = p.Preparation(resize=32, crop=28, filter=kind)
    found = levels(prepare(image[None].astype(np.float32)))[0]
    np.testing.assert_allclose(found, wanted[top : top + 28, left : left + 28], atol=1e-3)


def test_without_antialiasing_it_is_pytorchs():
    torch = pytest.importorskip("torch")
    image = pictures(1, 90)[0, :61, :80].astype(np.float32)
    prepare = p.Preparation(resize=28, filter="bilinear", antialias=False)
    found = levels(prepare(image[None]))[0]
    tensor = torch.tensor(image.transpose(2, 0, 1)[None])
    wanted = torch.nn.functional.interpolate(tensor, size=(28, 36), mode="bilinear")
    wanted = wanted.round().numpy()[0].transpose(1, 2, 0)
    difference = np.abs(found - wanted)
    assert found.shape == (28, 36, 3) and difference.max() < 1.01
    assert (difference > 0.01).mean() < 0.01


def test_an_odd_border_goes_where_each_library_puts_it():
    ramp = np.broadcast_to(np.arange(35, dtype=np.float32)[:, None, None], (35, 28, 3))[None]
    first = {}
    for centre in ("torchvision", "transformers"):
        prepare = p.Preparation(resize=28, crop=28, centre=centre)
        first[centre] = round(float(levels(prepare(ramp))[0, 0, 0, 0]))
    assert first == {"torchvision": round(3.5), "transformers": 3}


def test_impossible_preparations_are_refused():
    with pytest.raises(UvitError, match=r"resize=100 .*crop=224"):
        p.Preparation(resize=100, crop=224)
    with pytest.raises(UvitError, match="centre"):
        p.Preparation(resize=224, centre="left")
    with pytest.raises(UvitError, match="antialias=False"):
        p.Preparation(resize=8, antialias=False)
    with pytest.raises(UvitError, match="another preparation"):
        encoder("pixels", preparation=p.DINO)
    with pytest.raises(UvitError, match="dino_vits16 needs its weights"):
        encoder("dino_vits16")
