"""What a user can get wrong: one line that helps, status 2, and nothing overwritten."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import cli, train
from tests.helpers import hostile
from tests.helpers.running import ROOT, TINY, finish, losses, start
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.vocabulary import TextFeatures, Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.training.checkpoint import CHECKSUMS, check_checksums
from uvit_jax.training.metrics_writer import read_metrics
from uvit_jax.training.workdir import Workdir


def run(*args, config=str(ROOT / TINY)):
    return train.main([f"--config={config}", *map(str, args)])


CASES = {
    "unknown config": (["--config=configs/quikstart.py"], r"quikstart.py.*did you mean"),
    "unknown key": (["--config.train.stpes=3"], r"config\.train\.stpes.*did you mean 'steps'"),
    "unknown group": (["--config.trian.steps=3"], r"config\.trian.*did you mean 'train'"),
    "key of the model": (
        ["--config.model.backbone.heads=3"],
        r"model\.backbone\.heads is not a known key; did you mean 'num_heads'",
    ),
    "type": (["--config.train.steps=many"], r"config\.train\.steps must be an integer"),
    "value": (["--config.train.steps=0"], r"config\.train: steps must be at least 1"),
    "a key without config": (["--train.stepz=3"], r"--config\.train\.stepz=VALUE"),
    "unknown flag": (["--workdri=x"], r"--workdri.*did you mean '--workdir'"),
    "prediction": (["--config.diffusion.prediction=epsilon"], r"config\.diffusion.*epsilon"),
    "heads": (["--config.model.backbone.num_heads=3"], r"width=32 is not divisible"),
    "patch": (["--config.model.segments.image.patch_size=5"], r"'image'.*patch_size=5"),
    "sequence": (["--config.model.sequence=('label', 'image')"], r"no time segment"),
    "mesh": (["--config.mesh.fsdp=3"], r"config\.mesh .*does not fit 1 devices"),
    "accumulate": (["--config.train.accumulate=5"], r"batch_size=16 is not divisible"),
    "picture size": (["--config.data.image_size=32"], r"segment 'image'.*config\.data\.image_size"),
    "classes": (["--config.model.segments.label.num_classes=3"], r"num_classes=3, the data have"),
    "no labels": (["--config.data.labels=''"], r"set config\.data\.labels"),
    "missing set": (
        [
            "--config.data.name=cifar10",
            "--config.data.keep_vendors=()",
            "--config.data.keep_groups=()",
            "--config.data.labels=label",
        ],
        r"cifar10.*(tfds build|prepare)",
    ),
    "drop": (["--config.train.drop.lable=0.1"], r"drop\.lable.*did you mean 'label'"),
    "seed": (["--config.seed=-1"], r"seed must lie in"),
    "rate": (["--config.optimizer.learning_rate=-1"], r"optimizer.*learning_rate"),
    "eps": (["--config.optimizer.eps=1e-300"], r"config\.optimizer\.eps"),
    "b2": (["--config.optimizer.b2=0.9999999999"], r"config\.optimizer: b2"),
    "weight": (["--config.sample.guidance_scale=1e60"], r"config\.sample\.guidance_scale"),
    "time": (["--config.sample.times.image=1e-50"], r"config\.sample\.times\.image"),
    "channel": (["--config.sample.guidance_interval=(1e-50,1.0)"], r"guidance_interval\[0\]"),
    "not a group": (
        ["--config.model.segments.image=3"],
        r"segments\.image must be a group of keys",
    ),
    "share": (["--config.train.drop.label=x"], r"drop\.label must be a number"),
    "attention": (["--config.model.backbone.attention=cudnn"], r"NVIDIA GPUs, not on cpu"),
    "reversed interval": (
        ["--config.sample.guidance_interval=(0.8, 0.2)"],
        r"config\.sample.*guidance_interval",
    ),
    "times reversed": (
        ["--config.sample.sampler.t_start=0.2", "--config.sample.sampler.t_end=0.7"],
        r"config\.sample\.sampler.*t_start=0\.2 must be larger than t_end=0\.7",
    ),
    "end after the default start": (
        ["--config.sample.sampler.t_end=1.0"],
        r"config\.sample\.sampler.*t_end=1\.0 must satisfy",
    ),
    "time outside": (["--config.sample.sampler.t_start=1.5"], r"t_start must lie in \[0, 1\]"),
    "clip": (["--config.sample.clip=-1"], r"config\.sample: clip must be positive, or 0"),
    "respaced": (
        ["--config.sample.sampler.name=ddpm", "--config.sample.sampler.spacing=respaced"],
        r"config\.sample\.sampler: spacing='respaced' needs a schedule with discrete steps",
    ),
    "infinite log-SNR": (
        ["--config.sample.sampler.t_end=0.0"],
        r"config\.sample\.sampler.*finite log-SNR",
    ),
    "samplers' steps": (["--config.sample.sampler.steps=1000000000"], r"steps must lie in \[1,"),
    "batch too large": (["--config.train.batch_size=1000000000"], r"train\.batch_size=.*lower it"),
    "too many samples": (["--config.sample.count=1000000000"], r"sample\.count=.*lower it"),
    "model too large": (["--config.model.backbone.width=4000000000"], r"config\.model needs"),
    "many digits": ([f"--config.optimizer.b1=1{400 * '0'}"], r"optimizer\.b1 must lie within"),
    "infinite": (["--config.optimizer.b1=1e999"], r"optimizer\.b1 must be a finite number"),
    "kind": (["--config.model.segments.label.kind={1: 2}"], r"label\.kind=.*known"),
    "deep": ([f"--config.seed={'[' * 3000}"], r"seed must be an integer"),
    "workers": (["--config.data.workers=1000000"], r"workers must be at most 1024"),
    "guidance label": (["--config.sample.labels=('nobody',)"], r"label 'nobody'"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_error_and_nothing_written(case, tmp_path):
    args, pattern = CASES[case]
    workdir = tmp_path / "run"
    if "missing set" in case:
        args = [*args, f"--config.data.data_dir={tmp_path}"]
    with pytest.raises(UvitError, match=pattern) as caught:
        run(f"--workdir={workdir}", *args)
    assert "\n" not in str(caught.value)
    assert not workdir.exists()


def test_the_command_line_prints_one_line_and_status_2(tmp_path):
    args = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.train.stpes=3")
    status, out, err = finish(start("experiments.train", *args))
    assert status == 2 and not out
    assert err.startswith("error: config.train.stpes") and err.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of two steps."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert run(f"--workdir={workdir}", "--config.train.steps=2") == 0
    return workdir


def test_workdir_of_another_config_is_left_alone(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(UvitError, match=r"another config; it differs in .*optimizer\.b1.*seed"):
        run(f"--workdir={workdir}", "--config.seed=1", "--config.optimizer.b1=0.5")
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "change", ["sampler.t_end=1.0", "sampler.t_start=-1", "clip=-0.5", "guidance_interval=(1,0)"]
)
def test_impossible_sampling_is_not_written_into_a_finished_run(change, trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    before = (workdir / "config.json").read_bytes()
    key = change.partition("=")[0].rpartition(".")[2]
    with pytest.raises(UvitError, match=rf"config\.sample.*{key}"):
        run(f"--workdir={workdir}", "--config.train.steps=2", f"--config.sample.{change}")
    assert (workdir / "config.json").read_bytes() == before


def test_a_folder_that_is_no_workdir_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(UvitError, match="not empty and has no run"):
        run(f"--workdir={tmp_path}")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def folder_args(path):
    return [
        "--config.data.name=folder",
        f"--config.data.path={path}",
        "--config.data.keep_vendors=()",
        "--config.data.keep_groups=()",
        "--config.data.labels=label",
    ]


def test_a_broken_image_raises_with_its_name(tmp_path):
    pictures = tmp_path / "pictures"
    for name in ("a", "b"):
        (pictures / name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / name / "good.png")
    broken = pictures / "b" / "broken.png"
    broken.write_bytes((pictures / "a" / "good.png").read_bytes()[:100])
    with pytest.raises(UvitError, match=r"b/broken\.png"):
        run(f"--workdir={tmp_path / 'run'}", *folder_args(pictures))
    assert not (tmp_path / "run").exists()
    broken.unlink()
    config = DataConfig(name="folder", path=str(pictures), labels="label", image_size=16)
    assert next(batches(config, batch_size=4, seed=0))["image"].shape == (4, 16, 16, 3)


def test_a_loss_that_is_not_finite_stops_with_step_and_records(tmp_path):
    workdir = tmp_path / "run"
    args = ["--config.optimizer.learning_rate=1e30", "--config.train.checkpoint_every=1"]
    with pytest.raises(
        UvitError, match=r"loss of step (\d+) is .*records \[\d+, .*good steps before"
    ):
        run(f"--workdir={workdir}", *args)
    saved = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
    rows = [json.loads(r) for r in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert saved and max(saved) <= max(row["step"] for row in rows)


def test_overrides_reach_every_key():
    config = cli.read_config(str(ROOT / TINY), {"mesh.fsdp": 2, "sample.sampler.steps": 7})
    from uvit_jax.training.run_config import parse_run

    parsed = parse_run(config)
    assert parsed.mesh.fsdp == 2 and parsed.sample.sampler.steps == 7
    with pytest.raises(UvitError, match=r"config\.seed is not a group"):
        cli.read_config(str(ROOT / TINY), {"seed": 1, "seed.x": 2})


def test_two_runs_in_one_workdir(tmp_path):
    from uvit_jax.data.vocabulary import Vocabulary
    from uvit_jax.training.workdir import Workdir

    first = Workdir(tmp_path / "run")
    first.create({"model": {}}, Vocabulary(("a",)))
    with pytest.raises(UvitError, match="another process is training"):
        Workdir(tmp_path / "run").create({"model": {}}, Vocabulary(("a",)))
    first.close()
    with pytest.raises(UvitError, match="give another --workdir"):
        Workdir(tmp_path / "run").create({"model": {}}, Vocabulary(("b",)))
    with pytest.raises(UvitError, match="another config"):
        run(f"--workdir={tmp_path / 'run'}")


def test_a_run_killed_before_its_config_was_written_begins_again(tmp_path):
    workdir = tmp_path / "run"
    (workdir / "samples").mkdir(parents=True)
    (workdir / "vocabulary.json").write_text("{")
    assert run(f"--workdir={workdir}", "--config.train.steps=1") == 0


def test_damaged_metrics_raise_and_are_unchanged(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    metrics = workdir / "metrics.jsonl"
    damaged = metrics.read_text().replace('"step": 1', '"st', 1)
    metrics.write_text(damaged)
    with pytest.raises(UvitError, match=r"line 1 of .*metrics\.jsonl is damaged"):
        run(f"--workdir={workdir}", "--config.train.steps=3")
    assert metrics.read_text() == damaged


def test_a_damaged_vocabulary_names_the_file_and_the_command(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "vocabulary.json").write_text("{")
    with pytest.raises(UvitError, match=r"vocabulary\.json is damaged.*rm .*experiments\.train"):
        run(f"--workdir={workdir}", "--config.train.steps=2")


def test_a_missing_config_names_the_checkpoints_and_the_way_back(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    (workdir / "config.json").unlink()
    with pytest.raises(UvitError, match=r"config\.json is missing.*steps .*cp NEW/config\.json"):
        run(f"--workdir={workdir}", "--config.train.steps=2")


def test_a_broken_image_met_late_saves_the_steps_before(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(folder / f"{i:02d}.jpg", quality=95)
    data = dict(name="folder", path=str(folder), labels="", keep_vendors=(), keep_groups=())
    data = [f"--config.data.{key}={value!r}" for key, value in data.items()]
    unlabelled = ["--config.model.sequence=('time', 'image')", "--config.train.drop={}"]
    args = [*data, *unlabelled, "--config.sample.guidance_scale=0", "--config.train.steps=5"]
    args += ["--config.train.batch_size=4"]
    assert run(*args, f"--workdir={tmp_path / 'intact'}") == 0

    order = batches(DataConfig(name="folder", path=str(folder)), batch_size=4, seed=0)
    first_three = [next(order)["index"] for _ in range(3)]
    broken = folder / f"{first_three[2][0]:02d}.jpg"  # not before the third batch, in one epoch
    content = broken.read_bytes()
    broken.write_bytes(content[: -len(content) // 5])  # its header is intact
    workdir = tmp_path / "run"
    with pytest.raises(UvitError, match=rf"{broken.name}.*Step 2 is saved.*same command"):
        run(*args, f"--workdir={workdir}")
    assert (workdir / "checkpoints" / "2").is_dir()
    broken.write_bytes(content)
    assert run(*args, f"--workdir={workdir}") == 0
    assert losses(workdir) == losses(tmp_path / "intact")


DEEP = {"a": 1}
for _ in range(450):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize("damaged", hostile.FILES.values(), ids=hostile.FILES)
def test_damaged_json_in_a_workdir_is_one_line(damaged, tmp_path):
    workdir = Workdir(tmp_path)
    for file in (workdir.config, workdir.vocabulary, workdir.metrics):
        file.write_bytes(damaged + b"\n")
    with pytest.raises(UvitError, match=r"config\.json is damaged.*--workdir"):
        workdir.read_config()
    with pytest.raises(UvitError, match=r"vocabulary\.json is damaged.*rm .*experiments\.train"):
        workdir.read_vocabulary()
    with pytest.raises(UvitError, match=r"line 1 of .*metrics\.jsonl is damaged"):
        read_metrics(workdir.metrics)
    (tmp_path / CHECKSUMS).write_bytes(damaged)
    with pytest.raises(UvitError, match=rf"{CHECKSUMS} is damaged"):
        check_checksums(tmp_path)


@pytest.mark.parametrize("key", ["classes", "tokenizer", "features"])
@pytest.mark.parametrize("value", [5, "abc", {"a": 1}, [1], DEEP, {"words": 5}, 10**400])
def test_vocabularies_of_other_types_are_refused(key, value):
    valid = json.loads(Vocabulary(("a",)).to_json())
    with pytest.raises(UvitError):
        Vocabulary.from_json(json.dumps(valid | {key: value}))


def test_null_features_of_other_shapes_are_refused():
    features = TextFeatures(np.zeros((2, 3), np.float32)).to_dict()
    for shape in ([6], [10**400, 1], "23", [2, 4], None):
        text = json.dumps(
            {"classes": [], "tokenizer": None, "features": features | {"shape": shape}}
        )
        with pytest.raises(UvitError, match="vocabulary"):
            Vocabulary.from_json(text)


@pytest.mark.parametrize(
    "row", [dict(step="1"), dict(loss=None), dict(loss=10**400), dict(step=[])]
)
def test_rows_of_metrics_of_other_types_are_refused(row, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5} | row) + "\n")
    with pytest.raises(UvitError, match=r"line 1 of .*repair it"):
        read_metrics(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("config", [{"model": {}, "train": 5}, {"model": DEEP}, {"model": [DEEP]}])
def test_a_config_of_other_types_is_of_another_run(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = {"optimizer": {"schedule": "cosine"}, "train": {"steps": 1}, "model": {}}
    with pytest.raises(UvitError, match="another config"):
        Workdir(tmp_path).check(wanted)
