"""`experiments.sample --mode`: prompts and images in, images and captions out, on tiny networks in
the files of their authors' layout."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import uvit_jax
from experiments import import_checkpoint, sample
from tests.helpers.clips import LENGTH
from tests.helpers.pipelines import EMBEDS, REDUCED, write_pipeline
from tests.helpers.weights import random_params
from uvit_jax.encoders import clip_weights
from uvit_jax.encoders.clip_weights import load_image_encoder
from uvit_jax.errors import UvitError
from uvit_jax.interop.exporting import export
from uvit_jax.models.presets.unidiffuser import preset
from uvit_jax.sampling import modes

pytest.importorskip("transformers")

SIDE = 8
CONFIG = """
from ml_collections import ConfigDict
from uvit_jax.models.presets.unidiffuser import preset


def get_config():
    config = ConfigDict()
    config.data = dict(name="latents", path="nowhere")
    config.model = preset(
        "{version}",
        (4, 4, 4),
        text_shape={text},
        clip_size={clip},
        width=16,
        depth=2,
        num_heads=2,
    )
    config.diffusion = dict(schedule=dict(name="sd"))
    config.train = dict(steps=1, batch_size=2)
    config.sample = dict(sampler=dict(name="ddim", steps=2), guidance_scale=2.0, fresh_noise=True)
    return config
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Runs of v0 and v1, imported from official files."""
    root, folders = tmp_path_factory.mktemp("runs"), {}
    for version in ("v0", "v1"):
        options = dict(text_shape=(LENGTH, REDUCED), clip_size=EMBEDS)
        model = uvit_jax.build(
            preset(version, (4, 4, 4), **options, width=16, depth=2, num_heads=2)
        )
        file, config = root / f"{version}.safetensors", root / f"{version}.py"
        export(file, model, random_params(model), "official")
        config.write_text(CONFIG.format(version=version, text=(LENGTH, REDUCED), clip=EMBEDS))
        folders[version] = root / version
        args = [f"--checkpoint={file}", f"--config={config}", f"--workdir={folders[version]}"]
        assert import_checkpoint.main(args) == 0
    return folders


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        pixels = rng.integers(0, 256, (13, 17, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def run(workdir, pipeline, tmp_path, *flags):
    out, results = tmp_path / "out.png", tmp_path / "results.json"
    encoders = [f"--{name}={pipeline}" for name in ("image_encoder", "caption_decoder")]
    encoders += [f"--text_encoder={pipeline}", f"--autoencoder={pipeline / 'vae'}"]
    assert (
        sample.main(
            [
                f"--workdir={workdir}",
                *encoders,
                f"--out={out}",
                f"--json={results}",
                *map(str, flags),
            ]
        )
        == 0
    )
    return dict(np.load(out.with_suffix(".npz"))), json.loads(results.read_text())


@pytest.mark.parametrize("mode", modes.MODES)
def test_every_mode(workdirs, pipeline, photos, tmp_path, capsys, mode):
    given = modes.GIVEN.get(mode)
    flags = {"text": ["--prompt=a cat", "--prompt=dogs"], "image": [f"--image={photos}"]}
    arrays, results = run(
        workdirs["v1"], pipeline, tmp_path, f"--mode={mode}", *flags.get(given, ["--count=2"])
    )
    has_image = mode not in ("image_to_text", "text")
    has_text = mode not in ("text_to_image", "image")
    assert ("image" in arrays) == has_image and ("text" in arrays) == has_text
    assert results["count"] == 2 and len(results["captions"]) == 2
    if has_image:
        assert arrays["image"].shape == (2, SIDE, SIDE, 3)
        assert np.isfinite(arrays["image"]).all()
    if has_text:
        assert arrays["text"].shape == (2, LENGTH, REDUCED)
        assert all(caption in capsys.readouterr().out for caption in results["captions"][:1])
    elif given:
        assert results["captions"] == ["a cat", "dogs"]
    # The grid has the given images where none are generated.
    assert (tmp_path / "out.png").is_file() == (mode != "text")


def test_added_references_change_nothing_before_training(workdirs, pipeline, photos, tmp_path):
    folder = workdirs["v1"].parent
    args = [f"--checkpoint={folder / 'v1.safetensors'}", f"--config={folder / 'v1.py'}"]
    args += [f"--workdir={folder / 'with_references'}", "--subjects=1", "--views=2"]
    assert import_checkpoint.main(args) == 0
    flags = ["--mode=text_to_image", "--prompt=a cat"]
    before, _ = run(workdirs["v1"], pipeline, tmp_path, *flags)
    flags.append(f"--references={photos}")
    after, results = run(folder / "with_references", pipeline, tmp_path, *flags)
    assert results["references"] == [photos.name]
    np.testing.assert_allclose(after["image"], before["image"], atol=1e-4)


@pytest.mark.parametrize("flags", [["--subjects=-1"], ["--subjects=1", "--views=0"]])
def test_impossible_numbers_of_references_are_refused(tmp_path, flags):
    with pytest.raises(UvitError, match="--subjects must be at least 0 and --views 1"):
        import_checkpoint.main(["--checkpoint=x", f"--workdir={tmp_path / 'y'}", *flags])


def test_data_types_differ(workdirs, pipeline, tmp_path):
    flags = ["--mode=image", "--count=1"]
    web, internal, default = (
        run(workdirs["v1"], pipeline, tmp_path, *flags, *more)[0]["image"]
        for more in (["--data_type=0"], ["--data_type=1"], [])
    )
    assert np.array_equal(internal, default) and not np.array_equal(web, default)


def test_images_are_encoded_as_by_the_tower(pipeline):
    encode = load_image_encoder(pipeline)
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 9, 3), np.uint8)
    features = encode(images, batch_size=2)
    assert features.shape == (3, EMBEDS)
    x = clip_weights.prepare(images.astype(np.float32), 8)
    tower, params = clip_weights.load_vision(pipeline / "image_encoder")
    expected = jax.jit(tower.apply)(params, x)["embeds"]
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=text_to_image"], "text_to_image.*needs --prompt"),
        (["--mode=image_to_text"], "image_to_text.*needs --image"),
        (["--mode=joint", "--prompt=a"], "joint.*given nothing; leave out --prompt"),
        (["--mode=image_to_text", "--image=x", "--prompt=a"], "given an image; .*--prompt=a"),
        (["--mode=text_to_image", f"--prompt={'long ' * LENGTH}"], r"tokens.*shorten"),
        (["--mode=image_to_text", "--image=/nowhere.png"], "nowhere.png"),
        (["--mode=joint", "--label=cat"], "given no label; leave out --label=cat"),
        (["--mode=txt2img"], "not a known value"),
        (["--mode=image", "--data_type=1"], r"no segment 'data_type'.*drop --data_type=1"),
        (["--image=x.png"], "--image=x.png needs --mode"),
        (["--mode=text_to_image", "--prompt=a", "--text_encoder="], "name its folder"),
        (["--mode=text_to_image", "--prompt=a", "--caption_decoder="], "--caption_decoder="),
    ],
)
def test_impossible_flags_raise(workdirs, pipeline, tmp_path, flags, message):
    with pytest.raises(UvitError, match=message):
        run(workdirs["v0"], pipeline, tmp_path, *flags)


def test_a_data_type_out_of_range_is_refused(workdirs, pipeline, tmp_path):
    with pytest.raises(UvitError, match=r"--data_type=2 must lie in \[0, 2\)"):
        run(workdirs["v1"], pipeline, tmp_path, "--mode=image", "--data_type=2")


def test_an_image_without_its_encoder(workdirs, pipeline, photos, tmp_path):
    mode = ["--mode=image_to_text", f"--image={photos}"]
    for flag in ("--image_encoder=", "--autoencoder="):
        with pytest.raises(UvitError, match=flag):
            run(workdirs["v1"], pipeline, tmp_path, *mode, flag)
