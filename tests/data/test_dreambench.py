"""DreamBench's folder: classes, two lists of prompts, photographs, errors."""

import numpy as np
import pytest
from PIL import Image

from uvit_jax.data.sources.dreambench import DreamBench
from uvit_jax.errors import UvitError

FILE = """Classes

subject_name,class
backpack_dog,backpack
dog2,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
]
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (
        ("dog2/01.jpg", (20, 30)),
        ("dog2/00.jpg", (24, 16)),
        ("backpack_dog/a.png", (9, 9)),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "prompts_and_classes.txt").write_text(FILE)
    return tmp_path


def test_subjects_classes_and_prompts(folder):
    bench = DreamBench(folder, image_size=8)
    assert list(bench.subjects) == ["backpack_dog", "dog2"]
    dog, pack = bench.subjects["dog2"], bench.subjects["backpack_dog"]
    assert dog.live and not pack.live
    assert dog.prompts("@1") == ["a @1 dog wearing a red hat"]
    assert pack.prompts("sks") == ["a sks backpack in the jungle", "a red sks backpack"]
    assert pack.prompts("")[0] == "a backpack in the jungle"
    assert [f.name for f in dog.files] == ["00.jpg", "01.jpg"]
    images = dog.images()
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.float32
    assert -1 <= images.min() < images.max() <= 1
    assert list(DreamBench(folder, names=["dog2"]).subjects) == ["dog2"]


def test_images_of_several_sizes_need_an_image_size(folder):
    with pytest.raises(UvitError, match="set image_size"):
        DreamBench(folder).subjects["dog2"].images()


def test_a_plain_list_of_prompts_serves_all(folder):
    (folder / "prompts_and_classes.txt").unlink()
    (folder / "prompts.txt").write_text("a {0} {1} at sea\n\n{0} asleep\n")
    dog = DreamBench(folder).subjects["dog2"]
    assert dog.prompts("@1") == ["a @1 dog at sea", "@1 asleep"]


def test_errors_name_the_file_or_subject(folder):
    with pytest.raises(UvitError, match="no subject 'cow'; it has backpack_dog, dog2"):
        DreamBench(folder, names=["cow"])
    (folder / "dog2" / "02.jpg").write_bytes(b"\xff\xd8 not an image")
    with pytest.raises(UvitError, match=r"cannot be opened: .*02\.jpg") as caught:
        DreamBench(folder)
    assert "\n" not in str(caught.value)
    (folder / "dog2" / "02.jpg").unlink()
    file = folder / "prompts_and_classes.txt"
    for text, message in (
        (FILE.replace("dog2,dog", "dog3,dog"), "no class .*'dog2'"),
        (FILE.replace("a red {0}", "a red"), r"needs \{0\}"),
        ("nothing", "two lists of prompts"),
    ):
        file.write_text(text)
        with pytest.raises(UvitError, match=message):
            DreamBench(folder)
    file.unlink()
    with pytest.raises(UvitError, match="neither prompts_and_classes"):
        DreamBench(folder)
    with pytest.raises(UvitError, match="does not exist"):
        DreamBench(folder / "nowhere")
