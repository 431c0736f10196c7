"""Images of a user's own subjects, from a folder or a manifest."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from experiments import cli, inspect_data
from tests.helpers.running import ROOT
from uvit_jax import build
from uvit_jax.data.batches import batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.pipeline import dataset
from uvit_jax.errors import UvitError
from uvit_jax.training.run_config import parse_run

SIZE = 8
COLOURS = {"rex": (200, 40, 0), "ball": (0, 120, 220), "cup": (20, 220, 90)}


def config(path, **changes):
    defaults = dict(name="subjects", path=str(path), image_size=SIZE, text=True)
    return DataConfig(**(defaults | changes))


@pytest.fixture
def photos(tmp_path):
    """Three subjects, whose images differ in brightness; one has captions."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = np.full((12, 10, 3), colour, np.uint8) + np.uint8(5 * i)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    for i in range(4):
        (tmp_path / "rex" / f"{i}.txt").write_text("@1, a dog")
    return tmp_path


def subject_of(image):
    """The name of the subject whose colour an image has."""
    pixel = (np.asarray(image, np.float32).reshape(-1, 3)[0] + 1) * 127.5
    return min(COLOURS, key=lambda name: np.abs(pixel - 7 - COLOURS[name]).max())


def test_a_target_has_other_images_of_its_subject_as_references(photos):
    data = dataset(config(photos, max_subjects=2, max_views=2))
    assert len(data) == 12
    counts = set()
    for _, batch in zip(range(8), batches(data, batch_size=6, seed=0), strict=False):
        assert not batch["refs_present"][:, 1:].any()
        assert batch["refs_present"][:, 0, 0].all()
        counts |= set(batch["refs_present"][:, 0].sum(1).tolist())
        for b, image in enumerate(batch["image"]):
            for v in np.flatnonzero(batch["refs_present"][b, 0]):
                reference = batch[f"ref_1_{v + 1}"][b]
                assert subject_of(reference) == subject_of(image)
                assert not np.array_equal(reference, image)
    assert counts == {1, 2}


def test_captions_are_those_of_files_or_the_name_alone(photos):
    data = dataset(config(photos))
    rows = data.batch(range(len(data)))
    texts = [data.tokenizer.decode(row) for row in rows["text"]]
    assert {(subject_of(i), t) for i, t in zip(rows["image"], texts, strict=True)} == {
        ("rex", "@1, a dog"),
        ("ball", "@1"),
        ("cup", "@1"),
    }
    # Training permutes the slots by these words, so all of them are known.
    assert data.tokenizer.words[:7] == tuple(f"@{s}" for s in range(1, 8))


def test_rows_follow_from_the_seed_alone(photos):
    whole = next(batches(config(photos), batch_size=8, seed=3))
    parts = [next(batches(config(photos), batch_size=8, seed=3, rows=r)) for r in ([0, 5], [7])]
    for name, value in whole.items():
        np.testing.assert_array_equal(value[[0, 5]], parts[0][name])
        np.testing.assert_array_equal(value[[7]], parts[1][name])
    data = pickle.loads(pickle.dumps(dataset(config(photos))))
    again = next(batches(data, batch_size=8, seed=3))
    np.testing.assert_array_equal(whole["ref_1_1"], again["ref_1_1"])


def manifest(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


PAIR = {
    "image": "cup/0.png",
    "caption": "@2 beside @1.",
    "references": {"@2": ["ball/1.png"], "@1": ["rex/0.png", "rex/1.png", "rex/2.png"]},
    "weight": 3,
}
ONE = {"image": "rex/3.png", "caption": "@1", "references": {"@1": ["rex/0.png"]}}


def test_a_manifest_has_subjects_by_name_and_weights(photos):
    data = dataset(config(manifest(photos, PAIR, "", ONE), max_views=2))
    assert len(data) == 4
    row = data.batch([0])
    assert [subject_of(row[name][0]) for name in ("ref_1_1", "ref_1_2", "ref_2_1")] == [
        "rex",
        "rex",
        "ball",
    ]
    assert row["refs_present"][0].tolist() == [[True, True], [True, False]]
    index = next(batches(data, batch_size=4, seed=0))["index"]
    assert sorted(index) == [0, 1, 2, 3]


def test_masks_cut_subjects_out_of_their_references(photos):
    mask = np.zeros((*Image.open(photos / "rex" / "0.png").size[::-1],), np.uint8)
    mask[:, : mask.shape[1] // 2] = 255
    Image.fromarray(mask).save(photos / "mask.png")
    row = {**ONE, "references": {"@1": ["rex/0.png", "rex/1.png"]}}
    plain = dataset(config(manifest(photos, row), max_views=2)).batch([0])
    path = manifest(photos, {**row, "masks": {"@1": ["mask.png", None]}})
    data = dataset(config(path, max_views=2, background="blue"))
    masked, half = data.batch([0]), SIZE // 2
    reference, whole = masked["ref_1_1"][0], plain["ref_1_1"][0]
    np.testing.assert_array_equal(reference[:, : half - 2], whole[:, : half - 2])
    np.testing.assert_allclose(
        reference[:, half + 2 :], np.broadcast_to((-1, -1, 1), (SIZE, half - 2, 3))
    )
    for name in ("ref_1_2", "image"):
        np.testing.assert_array_equal(masked[name], plain[name])
    Image.new("L", (3, 3)).save(photos / "mask.png")
    with pytest.raises(UvitError, match=r"0\.png .*mask is 3×3"):
        dataset(config(path)).batch([0])


@pytest.mark.parametrize("places", [2, 3])
def test_references_of_all_subjects_fit_places(photos, places):
    changes = dict(max_subjects=2, max_views=3, places=places)
    data = dataset(config(manifest(photos, PAIR, ONE), **changes))
    for _, batch in zip(range(5), batches(data, batch_size=4, seed=0), strict=False):
        present = batch["refs_present"][..., 0]
        for b, p in np.argwhere(present):
            expected = {0: "rex", 1: "ball"}[batch["subject_slots"][b, p]]
            assert subject_of(batch[f"ref_{p + 1}_1"][b]) == expected


def test_mirroring_mirrors_the_references_too(photos):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:, 0] = 255
    for i in range(4):
        Image.fromarray(pixels).save(photos / "rex" / f"{i}.png")
    data = dataset(config(photos, flip=True, max_views=1))
    rows = [i for i in range(12) if data.source[i]["example"].image.parent.name == "rex"]
    batch = data.batch(rows * 8, range(32))
    left, reference_left = (batch[n][:, 0, 0, 0] > 0 for n in ("image", "ref_1_1"))
    np.testing.assert_array_equal(left, reference_left)
    assert left.any() and not left.all()


WRONG = {
    "no JSON": (["{"], r"line 1: .*correct them"),
    "no object": (["3"], r"line 1: .*JSON object"),
    "unknown key": ([{**ONE, "refs": {}}], r"'refs' is not a known key; did you mean 'references'"),
    "no references": ([{"image": "a", "caption": "@1"}], r'references must be .*"@1"'),
    "an empty list": ([{**ONE, "references": {"@1": []}}], r"references of @1 must be a list"),
    "numbers": ([{**ONE, "references": {"@2": ["rex/0.png"]}}], r"number subjects from @1"),
    "masks of another": ([{**ONE, "masks": {"@2": ["m.png"]}}], r"masks must be of the form"),
    "too many masks": ([{**ONE, "masks": {"@1": [None] * 2}}], r"1 references and 2 masks"),
    "missing mask": ([{**ONE, "masks": {"@1": ["m.png"]}}], r"m\.png .*replace or remove"),
    "weight": ([{**ONE, "weight": 0.5}], r"weight must be an integer"),
    "missing name": ([ONE, {**ONE, "caption": "a dog"}], r"jsonl:2: .*'a dog' lacks @1"),
    "name without references": ([{**ONE, "caption": "@1 and @2"}], r"jsonl:1: @2 .*no references"),
    "ten of which one": ([{**ONE, "caption": "@10"}], r"lacks @1"),
    "too many subjects": ([PAIR], r"2 subjects, and config\.data\.max_subjects is 1"),
    "missing file": ([{**ONE, "image": "rex/9.png"}], r"rex/9\.png .*replace or remove"),
    "remote file": ([{**ONE, "image": "gs://a/b.png"}], r"line 1: gs://.*not supported"),
    "nothing": ([""], r"no examples; add a line"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_manifests_are_refused_by_line(photos, case):
    rows, message = WRONG[case]
    with pytest.raises(UvitError, match=message):
        dataset(config(manifest(photos, *rows), max_subjects=1))


def test_all_problems_are_listed_up_to_a_limit(photos):
    rows = [{**ONE, "caption": f"number {i}"} for i in range(12)]
    with pytest.raises(UvitError, match=r"12 captions.*number 0.*number 9.*and 2 more"):
        dataset(config(manifest(photos, *rows)))


def test_folders_without_other_views_are_refused(photos):
    (photos / "hat").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "hat" / "0.png")
    with pytest.raises(UvitError, match=r"hat; add another view"):
        dataset(config(photos))
    with pytest.raises(UvitError, match=r"nowhere .*folder with a sub-folder for each subject"):
        dataset(config(photos / "nowhere"))


def test_the_command_prints_numbers_and_writes_a_sheet(photos, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    args = [f"--config={ROOT / 'configs/own_subjects.py'}:{photos}", f"--out={out}", "--count=3"]
    assert inspect_data.main(args) == 0
    assert "references per subject: 3 to 3" in capsys.readouterr().out
    assert Image.open(out).width > 7 * 64  # six references and the target
    out.unlink()
    (photos / "cup" / "1.png").write_bytes(b"")
    with pytest.raises(UvitError, match=r"1\.png"):
        inspect_data.main(args)
    assert not out.exists()


def test_settings_after_the_path_agree_in_data_and_model():
    file = ROOT / "configs/own_subjects.py"
    run = parse_run(cli.read_config(f"{file}:my photos,subjects=1,views=3,size=32", {}))
    assert run.data.path == "my photos" and run.data.image_size == 32
    layout = build(run.model).layout
    assert (layout.num_subjects, layout.num_views) == (1, 3)
    assert layout.by_name["image"].shape == (32, 32, 3)
    for text, remedy in (("photos,subject=1", "subjects"), ("photos,views=two", "views=2")):
        with pytest.raises(UvitError, match=remedy):
            cli.read_config(f"{file}:{text}", {})


def test_the_command_takes_data_without_references(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    tiny = ROOT / "tests" / "configs" / "tiny.py"
    assert inspect_data.main([f"--config={tiny}", f"--out={out}", "--count=2"]) == 0
    assert "classes: " in capsys.readouterr().out and out.exists()
