"""A run that starts from the parameters and words of a stored one."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import uvit_jax
from configs.own_subjects import get_config
from configs.video import get_config as video_config
from tests.helpers.stored import write_run
from tests.helpers.weights import equal
from tests.training.test_subject_runs import photos, run  # noqa: F401
from uvit_jax.config import to_dict
from uvit_jax.data import pipeline
from uvit_jax.errors import UvitError
from uvit_jax.models.model import build
from uvit_jax.models.presets.unified import add_references
from uvit_jax.parallel.mesh import MeshConfig, make_mesh
from uvit_jax.parallel.sharding import path_string
from uvit_jax.training import loop
from uvit_jax.training.initial import initialised, read_initial, with_words
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import parse_run
from uvit_jax.training.state import init_state
from uvit_jax.training.workdir import Workdir


def started(run, mesh: Mesh | None = None):
    """The model, and the state that the run starts from."""
    mesh = mesh or make_mesh(MeshConfig())
    model = build(run.model)
    with jax.set_mesh(mesh):
        optimizer, _ = make_optimizer(run.optimizer, run.train)
        state, where = init_state(model, optimizer, jax.random.key(run.seed), mesh)
        return model, initialised(state, where, run, model, read_initial(run, model))


def starting_from(run, path, **segments):
    """The same run, started from a stored one, with other fields of segments."""
    config = dataclasses.asdict(run)
    config["train"]["init_from"] = str(path)
    for name, fields in segments.items():
        config["model"]["segments"][name] |= fields
    return parse_run(config)


def leaves(tree):
    return {path_string(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def test_a_run_starts_from_the_stored_average(tmp_path):
    stored, params = write_run(tmp_path / "a.safetensors")
    _, state = started(starting_from(stored, tmp_path / "a.safetensors"))
    assert equal(state.params, params) and equal(state.ema, params)
    assert int(state.step) == 0


def test_words_keep_their_ids_and_new_ones_follow(tmp_path, photos):  # noqa: F811
    loop.train(run(max_subjects=2, max_views=2), tmp_path / "totems")
    base = dict(path=str(photos), name="subjects", image_size=16, text=True, text_length=30)
    base |= dict(max_subjects=2, max_views=2)
    shutil.copy(photos / "clock/it.png", photos / "clock/again.png")
    for file in ("bear/back", "bear/front", "clock/it", "clock/again"):
        (photos / f"{file}.txt").write_text("@1 in a zeppelin")
    own = run(max_subjects=2, max_views=2)
    config = dataclasses.asdict(own) | {"data": base | dict(workers=0)}
    text = dict(vocab_size=600, shape=(30,))
    own = starting_from(parse_run(config), tmp_path / "totems", text=text)
    stored = Workdir(tmp_path / "totems").read_vocabulary()
    data = with_words(pipeline.dataset(own.data), own, stored)
    words = pipeline.dataset(run(max_subjects=2, max_views=2).data).tokenizer.words
    assert data.tokenizer.words[: len(words)] == words
    assert set(data.tokenizer.words[len(words) :]) == {"zeppelin"}

    _, state = started(own)
    before, after = leaves(uvit_jax.load(tmp_path / "totems")[1]), leaves(state.params)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name][tuple(map(slice, value.shape))], value)
    assert after["embed/segments/text/table/embedding"].shape[0] == 600

    too_few = starting_from(parse_run(config), tmp_path / "totems", text=dict(vocab_size=290))
    with pytest.raises(UvitError, match=r"segments\.text\.vocab_size to at least"):
        with_words(pipeline.dataset(own.data), too_few, stored)
    # The whole loop, which is resumed with the same words.
    first = dataclasses.replace(own, train=dataclasses.replace(own.train, steps=1))
    loop.train(first, tmp_path / "own")
    shutil.rmtree(tmp_path / "totems")  # which resuming does not need
    assert loop.train(own, tmp_path / "own").step == 2


def test_a_model_with_further_parts_is_the_stored_one_at_first(tmp_path, caplog):
    stored, params = write_run(tmp_path / "a.safetensors")
    config = dataclasses.asdict(starting_from(stored, tmp_path / "a.safetensors"))
    config["model"] = add_references(to_dict(stored.model), subjects=1)
    with caplog.at_level("INFO"):
        _, state = started(parse_run(config))
    before, after = leaves(params), leaves(state.params)
    new = after.keys() - before.keys()
    assert new and all(np.array_equal(after[name], before[name]) for name in before)
    assert all(name in caplog.text for name in new)


def test_a_video_model_starts_from_one_of_images():
    config = video_config("totems")
    run = parse_run(config)
    _, state = started(run)
    _, params = uvit_jax.load("shipped:totems")
    before, after = leaves(params), leaves(state.params)
    for part in ("embed/segments", "heads/segments"):
        assert np.array_equal(
            after[f"{part}/video/proj/kernel"], before[f"{part}/image/proj/kernel"]
        )
    assert np.array_equal(after["embed/positions/time_last"], before["embed/positions/time"])
    blocks = [name for name in after if name.startswith("backbone")]
    assert all(np.array_equal(after[name], before[name]) for name in blocks)


def test_segments_of_another_name_must_exist():
    for own, theirs in (("film", "image"), ("video", "film")):
        config = video_config("totems")
        config["train"]["init_segments"] = {own: theirs}
        run = parse_run(config)
        with pytest.raises(UvitError, match=f"init_segments.{own}='{theirs}'.*no segment 'film'"):
            read_initial(run, build(run.model))
    for own, theirs in (("first", "image"), ("video", "ref_1_1"), ("video", "text")):
        config["train"]["init_segments"] = {own: theirs}
        run = parse_run(config)
        with pytest.raises(UvitError, match=f"init_segments.{own}='{theirs}': the two have no"):
            read_initial(run, build(run.model))
    config["train"]["init_from"] = ""
    with pytest.raises(UvitError, match="init_segments"):
        parse_run(config)


def test_another_shape_is_refused(tmp_path):
    stored, _ = write_run(tmp_path / "a.safetensors")
    config = dataclasses.asdict(starting_from(stored, tmp_path / "a.safetensors"))
    config["model"]["backbone"]["width"] *= 2
    refused(config, tmp_path, r"config\.train\.init_from.*config\.model")


def test_another_objective_and_a_missing_run_are_refused(tmp_path):
    stored, _ = write_run(tmp_path / "a.safetensors")
    config = dataclasses.asdict(starting_from(stored, tmp_path / "a.safetensors"))
    other = "eps" if stored.diffusion.prediction != "eps" else "x0"
    refused(
        config | dict(diffusion=dict(prediction=other)), tmp_path, "config.diffusion.prediction"
    )
    config["train"]["init_from"] = str(tmp_path / "nowhere")
    refused(config, tmp_path, r"config\.train\.init_from=.*give a workdir")
    config["text_pretraining"]["steps"] = 2
    with pytest.raises(UvitError, match=r"config\.text_pretraining\.steps=0"):
        parse_run(config)


def refused(config, tmp_path, message):
    """Nothing is written."""
    with pytest.raises(UvitError, match=message):
        loop.train(parse_run(config), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_has_a_teacher_or_an_initialisation(tmp_path):
    stored, _ = write_run(tmp_path / "a.safetensors")
    config = dataclasses.asdict(stored)
    config["train"] |= dict(init_from="a", teacher="b")
    with pytest.raises(UvitError, match="init_from='a' and teacher='b'"):
        parse_run(config)


def test_own_subjects_start_from_a_shipped_network():
    config = parse_run(get_config("photos,init=shipped:totems"))
    model = uvit_jax.load("shipped:totems")[0]
    assert config.model.backbone == model.config.backbone
    assert config.train.init_from == "shipped:totems" and config.data.text_length == 24
    assert [s.name for s in config.model.layout().references] == ["ref_1_1", "ref_1_2"]
    with pytest.raises(UvitError, match="the path comes first, such as photos,subjects=1"):
        get_config("subjects=1")
    assert get_config("subjects").data.path == "subjects"  # a folder of this name
    with pytest.raises(UvitError, match="init=shipped:emoji_joint has no references"):
        get_config("photos,init=shipped:emoji_joint")
    with pytest.raises(UvitError, match=r"subjects=9: .* takes at most 3"):
        get_config("photos,init=shipped:totems,subjects=9")
    with pytest.raises(UvitError, match="is empty; give a workdir"):
        get_config("photos,init=")
    with pytest.raises(UvitError, match="width=64: with init=shipped:totems"):
        get_config("photos,init=shipped:totems,width=64")
