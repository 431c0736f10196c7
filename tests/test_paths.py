"""Paths: URLs are refused wherever they are not supported; a refusal creates nothing."""

from pathlib import Path

import numpy as np
import pytest

import uvit_jax
from experiments import cli
from tests.helpers.weights import random_params
from uvit_jax.data.data_config import DataConfig
from uvit_jax.errors import UvitError
from uvit_jax.evaluation import frechet
from uvit_jax.interop.exporting import export
from uvit_jax.interop.files import save_safetensors
from uvit_jax.interop.weight_files import open_weights
from uvit_jax.models.presets.uvit import preset
from uvit_jax.paths import local_path
from uvit_jax.training.workdir import Workdir

REFUSED = r"://? paths are not supported here; copy the files to a local"
OTHERS = ["s3://b/run", "https://h/x.safetensors", "file:///tmp/x"]  # supported nowhere
URLS = ["gs://b/run", "hf://o/m", "GS:/b", *OTHERS]


@pytest.mark.parametrize("url", [*URLS, Path("gs://b/run")])
def test_urls_are_refused(url):
    with pytest.raises(UvitError, match=REFUSED):
        local_path(url)


@pytest.mark.parametrize("path", ["a/b", "/a", "a:b/c", "C:/a", "run:1", "x/gs://b", "", "."])
def test_local_paths_stay_as_they_are(path):
    assert local_path(path) == Path(path)
    assert local_path("~/x") == Path.home() / "x"
    with pytest.raises(UvitError, match="no such user"):
        local_path("~nobody_of_this_name/x")


@pytest.mark.parametrize("url", OTHERS)
def test_other_schemes_are_refused_everywhere_and_create_nothing(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = uvit_jax.build(
        preset("S", (8, 8, 3), patch_size=2, num_classes=0, width=48, depth=2, num_heads=3)
    )
    params = random_params(model)
    parser = cli.Parser("")
    for name, metavar in (("--data", "DIR"), ("--out", "FILE"), ("--images", "PATH")):
        parser.add_argument(name, metavar=metavar)
    parser.add_argument("--references", metavar="FOLDER", action="append")
    flags = ("config", "json", "data", "out", "images", "references")
    statistics = frechet.Statistics(np.zeros(2), np.eye(2), 3)
    for call in (
        lambda: Workdir(url),
        lambda: uvit_jax.load(url),
        lambda: open_weights(url),
        lambda: save_safetensors(url, model, params),
        lambda: export(url, model, params, "own"),
        lambda: frechet.read_statistics(url),
        lambda: frechet.write_statistics(url, statistics),
        *(
            lambda k=key: DataConfig(name="folder", **{k: url})
            for key in ("path", "data_dir", "vocabulary")
        ),
        *(lambda f=flag: parser.parse(["--config=x", f"--{f}={url}"]) for flag in flags),
    ):
        with pytest.raises(UvitError, match=REFUSED):
            call()
    assert not list(tmp_path.iterdir())
