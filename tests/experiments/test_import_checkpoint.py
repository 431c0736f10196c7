"""`import_checkpoint` and `export_checkpoint`: weights become a run, and back."""

import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest

import uvit_jax
from experiments import cli, export_checkpoint, import_checkpoint, sample, train
from tests.helpers.running import ROOT, TINY
from tests.helpers.weights import equal, random_params
from uvit_jax.errors import UvitError
from uvit_jax.interop import compare_models
from uvit_jax.interop.exporting import export
from uvit_jax.interop.recognise import title
from uvit_jax.training.run_config import parse_run

CONFIG = f"--config={ROOT / TINY}"


@pytest.fixture(scope="module")
def theirs():
    """A small U-ViT of PyTorch with the shapes of the tiny config, its numbers random."""
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    from tests.helpers import torch_uvit

    torch.manual_seed(0)
    model = torch_uvit.UViT(16, 4, 3, width=32, depth=2, heads=2, rows=129).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(scope="module")
def workdir(theirs, tmp_path_factory):
    """The workdir that the command line makes of a training folder of that model."""
    import torch

    folder = tmp_path_factory.mktemp("training")
    for step, scale in ((9, 0.5), (10, 1.0)):  # the later is the one wanted, in number, not as text
        checkpoint = folder / f"{step}.ckpt"
        checkpoint.mkdir()
        weights = {k: scale * v for k, v in theirs.state_dict().items()}
        torch.save(weights, checkpoint / "nnet_ema.pth")
        torch.save({k: -v for k, v in weights.items()}, checkpoint / "nnet.pth")
    run_import(folder, folder / "run", CONFIG)
    return folder / "run"


def run_import(checkpoint, workdir, *args):
    flags = (f"--checkpoint={checkpoint}", f"--workdir={workdir}", *map(str, args))
    return import_checkpoint.main(flags)


def run_export(workdir, out, *args):
    export_checkpoint.main([f"--workdir={workdir}", f"--out={out}", *map(str, args)])
    return out


def test_the_workdir_computes_what_pytorch_does(theirs, workdir):
    import torch

    model, params = uvit_jax.load(workdir)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    t, y = np.array([3.5, 700.0], np.float32), np.array([4, 128])
    ours = jax.jit(model.apply)(params, {"image": x, "label": y}, {"image": t})["image"]
    with torch.no_grad():
        image = torch.tensor(x).permute(0, 3, 1, 2)
        expected = theirs(image, torch.tensor(t), y=torch.tensor(y)).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    assert equal(params, uvit_jax.load(workdir, ema=False)[1])
    names = {"checkpoints", "config.json", "vocabulary.json", "samples", "lock"}
    assert {p.name for p in workdir.iterdir()} == names
    assert not list(workdir.parent.glob(".*"))


def test_it_is_sampled_by_name(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    out = tmp_path / "x.png"
    label = json.loads((run / "vocabulary.json").read_text())["classes"][3]
    sample.main([f"--workdir={run}", "--steps=2", "--count=2", f"--label={label}", f"--out={out}"])
    pictures = np.load(out.with_suffix(".npz"))
    assert pictures["image"].shape == (2, 16, 16, 3) and list(pictures["label"]) == [3, 3]


@pytest.mark.slow
def test_training_resumes_from_it(workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    before = uvit_jax.load(run)[1]
    # The first step's learning rate is 0: if training goes on from these weights, it keeps them.
    args = [CONFIG, f"--workdir={run}", "--config.train.steps=1", "--config.sample.sampler.steps=2"]
    assert train.main(args) == 0
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["0", "1"]
    assert equal(before, uvit_jax.load(run, ema=False)[1])


@pytest.mark.parametrize(
    "form, name", [("own", "x.safetensors"), ("official", "x.safetensors"), ("official", "x.pth")]
)
def test_exported_and_imported_it_is_the_same_run(workdir, form, name, tmp_path):
    out = run_export(workdir, tmp_path / name, f"--format={form}")
    config = [] if form == "own" else [CONFIG]  # our own form brings the whole config
    run_import(out, tmp_path / "run", *config)
    assert equal(uvit_jax.load(workdir)[1], uvit_jax.load(tmp_path / "run")[1])
    for file in ("config.json", "vocabulary.json"):
        assert (tmp_path / "run" / file).read_text() == (workdir / file).read_text()
    with pytest.raises(UvitError, match="exists already"):
        run_export(workdir, tmp_path / name, f"--format={form}")


def test_steps_and_raw_parameters_of_a_training_folder(workdir, theirs, tmp_path):
    folder = workdir.parent
    run_import(folder, tmp_path / "run", CONFIG, "--step=9", "--raw")
    params = uvit_jax.load(tmp_path / "run")[1]
    bias = theirs.state_dict()["norm.bias"].numpy()
    np.testing.assert_array_equal(params["backbone"]["norm"]["bias"], -0.5 * bias)
    with pytest.raises(UvitError, match=r"has no checkpoint 8; it has \[9, 10\]"):
        run_import(folder, tmp_path / "other", CONFIG, "--step=8")


def test_the_config_is_chosen_by_its_model(workdir, tmp_path, monkeypatch, capsys):
    out = run_export(workdir, tmp_path / "x.safetensors", "--format=official")
    monkeypatch.chdir(tmp_path)
    configs = tmp_path / "configs"
    configs.mkdir()
    shutil.copy(ROOT / TINY, configs / "tiny.py")
    deeper = (ROOT / TINY).read_text().replace("depth=2", "depth=4")
    (configs / "deeper.py").write_text(deeper)
    (configs / "no_run.py").write_text("def get_config():\n    return {}\n")
    capsys.readouterr()
    run_import(out, tmp_path / "run", f"--json={tmp_path / 'results.json'}")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["config"] == "configs/tiny.py" and record["heads"] == 2 and record["tokens"] == 18
    assert record["model"] == "U-ViT/4 of width 32, depth 2 and 2 heads"
    assert record["model"] in capsys.readouterr().out
    shutil.copy(configs / "tiny.py", configs / "tiny_too.py")  # an equal config is no other
    run_import(out, tmp_path / "again")
    twin = (ROOT / TINY).read_text().replace("    return", "    config.seed = 1\n    return")
    (configs / "twin.py").write_text(twin)
    with pytest.raises(UvitError, match=r"configs/tiny\.py or configs/twin\.py.*--config"):
        run_import(out, tmp_path / "other")
    for name in ("tiny.py", "tiny_too.py", "twin.py"):
        (configs / name).unlink()
    with pytest.raises(UvitError, match=r"--config=FILE; known: configs/deeper"):
        run_import(out, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of configs where the command looks for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs"


def small(family, options="", more="", dtype="float32"):
    """The text of a config of a small model, whose data are nowhere, so soon read."""
    return (
        f"from uvit_jax.models.presets import {family}\n"
        "def get_config():\n"
        f"    model = {family}.preset('S', (8, 8, 4), patch_size=4, num_classes=5, width=32,\n"
        f"        depth=2, num_heads=2, {options})\n"
        f"    model['dtype'] = {dtype!r}\n"
        "    data = dict(name='latents', path='nowhere', labels='label')\n"
        f"    return dict(model=model, data=data, train=dict(steps=1, batch_size=1), {more})\n"
    )


def official_of(config, path):
    """A file of random weights for the model of a config."""
    model = uvit_jax.build(parse_run(cli.read_config(str(config), {})).model)
    export(path, model, random_params(model), "official")
    return path


def test_a_config_that_is_chosen_by_its_model_computes_in_float32(tmp_path, configs, capsys):
    (configs / "half.py").write_text(small("uvit", dtype="bfloat16"))
    out = official_of(configs / "half.py", tmp_path / "x.safetensors")
    for name, args, dtype in (
        ("found", [], "float32"),
        ("asked", ["--config.model.dtype=bfloat16"], "bfloat16"),
        ("named", ["--config=configs/half.py"], "bfloat16"),
    ):
        capsys.readouterr()
        run_import(out, tmp_path / name, *args)
        stored = json.loads((tmp_path / name / "config.json").read_text())
        assert stored["model"]["dtype"] == dtype, name
        assert f"computes in {dtype}\n" in capsys.readouterr().out
    # Our own export brings its config, dtype and all.
    run_import(run_export(tmp_path / "named", tmp_path / "own.safetensors"), tmp_path / "again")
    assert "computes in bfloat16\n" in capsys.readouterr().out
    with pytest.raises(UvitError, match=r"dtype='half'.*bfloat16"):
        run_import(out, tmp_path / "bad", "--config.model.dtype=half")
    assert not (tmp_path / "bad").exists()


def test_the_note_names_what_a_missing_vocabulary_disables(tmp_path, configs, capsys):
    for name, text, note in (
        ("classes", small("uvit"), "labels are numbers.*latents"),
        ("nothing", small("uvit").replace("num_classes=5, ", ""), "$"),
    ):
        (configs / f"{name}.py").write_text(text)
        out = official_of(configs / f"{name}.py", tmp_path / f"{name}.safetensors")
        results = tmp_path / "results.json"
        run_import(out, tmp_path / name, f"--config=configs/{name}.py", f"--json={results}")
        assert re.match(note, json.loads(results.read_text())["note"])
        assert ("labels" in capsys.readouterr().out) == (name == "classes")


def test_a_broken_config_is_skipped_with_a_warning(configs, caplog):
    count = "from pathlib import Path\nwith Path('runs').open('a') as f:\n    f.write('x')\n"
    (configs / "tiny.py").write_text(small("uvit") + count)
    broken = {
        "syntax": "def get_config(:\n",
        "fails": "def get_config():\n    raise KeyError('x')\n",
        "exits": "raise SystemExit(1)\n",
        "empty": "",
        "typo": "def get_config():\n    return {'modle': {}}\n",
    }
    for name, text in broken.items():
        (configs / f"{name}.py").write_text(text)
    assert [*import_checkpoint.known_configs()] == ["configs/tiny.py"]
    assert (configs.parent / "runs").read_text() == "x"  # it is run once
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(broken) and not any("\n" in line for line in lines)
    reasons = {"syntax": "SyntaxError", "fails": "KeyError", "typo": "modle", "exits": "SystemExit"}
    for name in broken:
        (line,) = (line for line in lines if line.startswith(f"configs/{name}.py is left out"))
        assert reasons.get(name, "get_config") in line


def test_a_dit_with_the_tensors_of_a_sit_is_ambiguous(tmp_path, configs, capsys):
    flow = "diffusion=dict(schedule=dict(name='rectified_flow'), prediction='velocity')"
    (configs / "noise.py").write_text(small("dit", "learned_range=False"))
    (configs / "flow.py").write_text(small("dit", "learned_range=False", flow))
    out = official_of(configs / "flow.py", tmp_path / "x.safetensors")

    def refused(match, *args):
        with pytest.raises(UvitError, match=match):
            run_import(out, tmp_path / "refused", *args)
        assert not (tmp_path / "refused").exists()

    refused(r"may be of configs/flow\.py or configs/noise\.py.*--config")
    (configs / "noise.py").rename(tmp_path / "noise.py")
    refused(r"may be a SiT, of configs/flow\.py, or a DiT without a learned range.*--config")
    capsys.readouterr()
    run_import(out, tmp_path / "named", "--config=configs/flow.py")
    assert "SiT" not in capsys.readouterr().out
    (configs / "flow.py").unlink()
    (tmp_path / "noise.py").rename(configs / "noise.py")
    run_import(out, tmp_path / "found")
    assert "SiT" in capsys.readouterr().out


def test_what_cannot_be_imported_leaves_nothing(workdir, tmp_path):
    import torch

    out = run_export(workdir, tmp_path / "x.pth", "--format=official")
    there = {p.name for p in tmp_path.iterdir()}

    def refused(match, *args, checkpoint=out):
        with pytest.raises(UvitError, match=match) as caught:
            run_import(checkpoint, tmp_path / "run", *args)
        assert "\n" not in str(caught.value)
        assert {p.name for p in tmp_path.iterdir()} == there

    wide = [
        "--config.model.backbone.qkv_bias=True",
        "--config.model.segments.image.final_conv=none",
    ]
    keys = r"differ in backbone\.qkv_bias.*segments\.image\.final_conv \('after' and 'none'\)"
    refused(keys, CONFIG, *wide)
    # One tensor of another shape can make another model; it is named, and what it was held against.
    weights = torch.load(out, weights_only=True)
    for key, shape in {
        "mid_block.mlp.fc1.weight": (5, 5),
        "patch_embed.proj.weight": (32, 4, 4, 4),
        "label_emb.weight": (7, 32),
    }.items():
        torch.save({**weights, key: torch.zeros(shape)}, tmp_path / "x.pth")
        refused(rf"tensors; {key} has shape \({shape[0]}, .*{TINY}", CONFIG)
    torch.save(weights, out)
    refused("name it with --config", "--config.seed=1")
    refused("does not exist", CONFIG, checkpoint=tmp_path / "nowhere.pth")
    refused("no U-ViT|num_heads|divisible", CONFIG, "--num_heads=5")
    # All errors of a file are in one message, even if its shapes imply no model.
    weights = torch.load(out, weights_only=True)
    weights["surprise"] = torch.zeros(3)
    weights["norm.bias"] = torch.zeros(5)
    del weights["patch_embed.proj.weight"]
    torch.save(weights, out)
    refused(r"missing: patch_embed\.proj\.weight; unexpected: surprise; norm\.bias has", CONFIG)


def test_a_workdir_in_use_is_left_alone(workdir, tmp_path):
    out = run_export(workdir, tmp_path / "x.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    with pytest.raises(UvitError, match="is in use"):
        run_import(out, tmp_path / "run")
    with pytest.raises(UvitError, match="is in use"):
        run_import(out, workdir)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    (tmp_path / "run" / "thesis.txt").unlink()
    run_import(out, tmp_path / "run")  # an empty folder is a new one


def test_no_two_configs_have_one_published_model():
    configs = import_checkpoint.known_configs(ROOT / "configs")
    titles = {spec.removeprefix(f"{ROOT}/configs/"): title(r.model) for spec, r in configs.items()}
    assert titles["uvit.py:imagenet256-L/2"] == "U-ViT-L/2"
    assert titles["dit.py:S/8-512"] == "DiT-S/8" and "uvit_l.py" not in titles
    published = [
        (name, run.model)
        for (name, model_title), run in zip(titles.items(), configs.values(), strict=True)
        if model_title.startswith(("U-ViT-", "DiT-"))
    ]
    # Only the two with one title can be the same.
    for (name, model), (other, same) in itertools.combinations(published, 2):
        assert titles[name] != titles[other] or compare_models.differences(model, same), (
            name,
            other,
        )
