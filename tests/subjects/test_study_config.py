"""Errors name the key; a workdir belongs to one comparison."""

import json

import numpy as np
import pytest

from configs import subjects
from experiments import compare
from experiments.subjects.evaluation_cases import ProceduralWorld
from experiments.subjects.methods import SAMPLE_STRIDE, seeds_of
from experiments.subjects.networks import BatchedSampler, TrainedNetwork, check_compute
from experiments.subjects.results import write_scores
from experiments.subjects.sample_store import SampleStore
from experiments.subjects.study import Comparison
from experiments.subjects.study_config import SettingConfig, parse_compare
from tests.helpers import comparisons
from uvit_jax.config import replaced
from uvit_jax.data import pipeline
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import forward_cost
from uvit_jax.models.model import build
from uvit_jax.training.run_config import parse_run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "totem"}, r"config\.world='totem' .*'totems'"),
        ({"arms.unified.network": "uvit"}, r"arms\.unified: .* 'uvit'"),
        ({"arms.unified.method": "lroa"}, r"arms\.unified\.method='lroa' .*'lora'"),
        ({"settings.identities": {"subjects": 2}}, r"settings\.identities: totems"),
        ({"main": "seen"}, r"'seen' is not in settings"),
        ({"baseline": "dit"}, r"baseline='dit' is not in arms"),
        ({"path": "photos"}, r"path='photos'"),
        ({"arms.unified.compose": ("fusd",)}, r"compose\[0\]='fusd' .*'fused'"),
        ({"settings.identities_1v.subjects": 0}, r"subjects and prompts must be at least 1"),
        ({"settings.identities_1v.finetuned": 9}, r"finetuned from 0 to subjects"),
        ({"arms.uvit_lora.settings": ("seen",)}, r"'seen' is not in settings"),
        ({"arms.uvit_lora.grid": {"ranks": ()}}, r"arms\.uvit_lora\.grid: ranks"),
        ({"arms.uvit_lora.grid": {"rank": (4,)}}, r"grid\.rank is not a known key; .* 'ranks'"),
        ({"arms.uvit_lora.seeds": (5,)}, r"arms\.uvit_lora: seed 5 is not in seeds=\(0,\)"),
        ({"seeds": (1, 1)}, r"seeds must be one or more different numbers"),
        ({"primary.backbone.method": "dit"}, r"primary\.backbone: 'dit' is not in arms"),
        ({"primary.backbone.margin": 0.0}, r"equivalence needs a positive margin"),
        ({"primary.binding.against": ("unified",)}, r"test='below' does not go with against"),
        ({"primary.binding.setting": "seen"}, r"'seen' is not in settings"),
        ({"pasted": -1}, r"pasted=-1"),
    ],
)
def test_bad_configs_raise(changes, message):
    with pytest.raises(UvitError, match=message):
        parse_compare(replaced(subjects.get_config("quick"), changes))


def test_the_networks_have_equal_compute_and_one_encoder():
    runs = [parse_run(subjects.get_config(name)) for name in subjects.STEPS]
    flops = [
        forward_cost(run.model, draws=run.train.draws).total
        * run.train.batch_size
        * run.train.steps
        for run in runs
    ]
    assert max(flops) < 1.02 * min(flops)
    texts = [run.model.segments["text"] for run in runs]
    assert len({(t.encoder_depth, t.encoder_width, t.vocab_size, t.shape) for t in texts}) == 1
    words = pipeline.dataset(runs[0].data).tokenizer.encode("@1 @2 @3 @4", 4)
    for run, text in zip(runs, texts, strict=True):
        assert text.names == tuple(words[: run.model.max_subjects])
        references = run.model.layout().references
        assert all(s.names_from == "text" for s in references)
        # Who a subject is, references show or captions say.
        assert bool(references) == bool(run.train.probe_every)
        assert bool(references) != bool(text.attributes) == bool(run.data.described)


def test_a_network_of_another_seed_differs_in_its_seed_alone():
    first, second = (subjects.get_config(f"dit_text_s{seed}") for seed in (0, 2))
    assert first == subjects.get_config("dit_text") and second == first | {"seed": 2}


def test_the_network_of_three_subjects_has_the_parameters_of_the_one_it_continues():
    (further,) = parse_compare(subjects.get_config("three")).networks.values()
    runs = parse_run(further), parse_run(subjects.get_config("uvit_context"))
    three, two = (build(run.model) for run in runs)
    assert three.abstract_params == two.abstract_params
    assert len(three.layout.references) == 3 and len(two.layout.references) == 2
    assert runs[0].data.max_subjects == 3 and runs[0].train.init_from == "shipped:totems"


def test_unequal_compute_is_an_error():
    class Network:
        def __init__(self, name, flops):
            self.name, self.train_flops = name, flops

    with pytest.raises(UvitError, match=r"network a is trained with 2e\+15 FLOPs and b with 1e"):
        check_compute([Network("a", 2e15), Network("b", 1e15)], 0.02)
    check_compute([Network("a", 1.01e15), Network("b", 1e15)], 0.02)


def test_a_workdir_is_of_one_comparison(tmp_path):
    config = subjects.get_config("quick")
    Comparison(parse_compare(config), tmp_path)
    Comparison(parse_compare(replaced(config, {"notes": ("another note",)})), tmp_path)
    before = (tmp_path / "compare.json").read_text()
    with pytest.raises(UvitError, match=r"it differs in samples\. Nothing was changed"):
        Comparison(parse_compare(replaced(config, {"samples": 3})), tmp_path)
    assert (tmp_path / "compare.json").read_text() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UvitError, match="is not empty and holds no comparison"):
        Comparison(parse_compare(config), other)
    with pytest.raises(UvitError, match=r"'uvit_lroa'; did you mean 'uvit_lora'"):
        Comparison(parse_compare(config), tmp_path, ["uvit_lroa"])


def test_a_workdir_of_an_older_config_is_the_same_comparison(tmp_path):
    config = parse_compare(subjects.get_config("quick"))
    Comparison(config, tmp_path)
    file = tmp_path / "compare.json"
    kept = json.loads(file.read_text())
    del kept["tolerance"], kept["arms"]["unified"]["grid"]  # as from before these keys existed
    file.write_text(json.dumps(kept | {"tolerance": config.tolerance}))
    Comparison(config, tmp_path)
    del kept["world"]
    file.write_text(json.dumps(kept))
    with pytest.raises(UvitError, match=r"it differs in .*world"):
        Comparison(config, tmp_path)
    file.write_text("[1]")
    with pytest.raises(UvitError, match=r"compare\.json is damaged"):
        Comparison(config, tmp_path)


def test_more_distractors_than_slots_are_an_error():
    given = subjects.get_config("quick")["networks"]["uvit_context"]
    network = object.__new__(TrainedNetwork)
    network.name, network.in_context, network._models = "uvit_context_s0", True, {}
    network.model = build(given["model"])
    for subjects_and_views in ((4, 1), (1, 4)):
        with pytest.raises(UvitError, match=r"slots for 3 subjects of 3 references.*distractors"):
            network.model_for(*subjects_and_views)


def test_only_networks_with_a_file_are_used(tmp_path):
    config = parse_compare(subjects.get_config("quick"))
    with pytest.raises(UvitError, match=r"none of the networks.*uvit_context_s0"):
        Comparison(config, tmp_path / "first", networks={})
    assert not (tmp_path / "first").exists()
    (file := tmp_path / "uvit_text_s0.safetensors").write_bytes(b"one")
    space = Comparison(config, tmp_path / "work", networks={file.stem: file}).space
    assert [space.available(arm) for arm in ("unified", "uvit_lora")] == [[], [0]]


def test_results_are_of_one_network_of_a_name(tmp_path):
    config = parse_compare(subjects.get_config("quick"))
    (file := tmp_path / "uvit_text_s0.safetensors").write_bytes(b"one")
    space = Comparison(config, tmp_path / "work", networks={file.stem: file}).space
    for _ in range(2):
        space.check_network("uvit_text", 0)
    file.write_bytes(b"another")
    with pytest.raises(UvitError, match=r"not the network uvit_text_s0.*another --workdir"):
        space.check_network("uvit_text", 0)


def test_damaged_samples_raise(tmp_path):
    store = SampleStore(tmp_path)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 4, 3)).astype(np.float32)
    store.write("unified", "pairs", images)
    assert store.has("unified", "pairs") and not store.has("unified", "seen")
    assert np.abs(store.read("unified", "pairs") - images).max() <= 1 / 255 + 1e-6
    store.note("costs/unified", {"image_seconds": [1.0]})
    assert json.loads((tmp_path / "costs/unified.json").read_text()) == store.noted("costs/unified")
    (tmp_path / "unified/pairs.npz").write_bytes(b"PK")
    with pytest.raises(UvitError, match=r"pairs\.npz is damaged"):
        store.read("unified", "pairs")


def test_a_last_batch_is_filled_up_and_cut_again():
    double = BatchedSampler(lambda scale, x: scale * x, 4)
    rows = np.arange(10.0)
    assert (double(2.0, rows) == 2 * rows).all()
    assert len(double.seconds) == 3 and double.compile_seconds > 0


def test_every_image_has_its_own_noise():
    cases = ProceduralWorld("totems", 16).cases("identities_1v", SettingConfig(subjects=8))
    seeds = seeds_of(cases, 3)
    assert seeds.shape == (16, 3) and len(np.unique(seeds)) == 48
    assert seeds[0, 1] == (cases[0].seed + SAMPLE_STRIDE) % 2**32


def test_a_report_without_results_raises_and_writes_nothing(tmp_path):
    flags = ["--config=configs/subjects.py", f"--workdir={tmp_path / 'none'}", "--report"]
    with pytest.raises(
        UvitError, match=r"no results to report: neither compare\.json nor results\.csv\.gz"
    ):
        compare.main(flags)
    assert not (tmp_path / "none").exists()


def test_a_report_before_training_raises(tmp_path):
    Comparison(parse_compare(subjects.get_config()), tmp_path)
    flags = ["--config=configs/subjects.py", f"--workdir={tmp_path}", "--report"]
    with pytest.raises(UvitError, match=r"no network .* has finished training"):
        compare.main(flags)


def test_a_report_needs_only_the_results(tmp_path):
    pytest.importorskip("matplotlib")
    write_scores(tmp_path / "results.csv.gz", comparisons.rows(subjects=3, seeds=1))
    comparisons.manifest().write(tmp_path / "manifest.json")
    flags = ["--config=configs/subjects.py", f"--workdir={tmp_path}", "--report"]
    assert compare.main(flags) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Unified sequence" in page and "data:image/png" not in page
    assert not (tmp_path / "compare.json").exists()
