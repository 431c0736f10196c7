"""Pushing to and loading from the Hugging Face Hub, against a server of this process."""

import logging

import jax
import numpy as np
import pytest

import uvit_jax
from experiments import export_checkpoint
from tests.helpers.hub_server import TOKEN, Hub
from tests.helpers.object_store import serve
from tests.helpers.stored import write_run
from tests.helpers.weights import equal
from uvit_jax import remote
from uvit_jax.errors import UvitError
from uvit_jax.interop import adapters
from uvit_jax.models import lora
from uvit_jax.training.model_card import adapter_card
from uvit_jax.training.stored_run import open_run

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra `hub`")


@pytest.fixture
def server(tmp_path, monkeypatch):
    class Repositories(Hub):
        repositories = {}  # noqa: RUF012

    running, address = serve(Repositories)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Repositories
    running.shutdown()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(a file, its run, its parameters)."""
    path = tmp_path_factory.mktemp("stored") / "tiny.safetensors"
    return path, *write_run(path)


def test_a_pushed_model_is_loaded_bit_for_bit(server, stored, capsys):
    path, run, params = stored
    remote.push("me/tiny", {remote.MODEL_FILE: path}, message="x")
    for name in ("hf://me/tiny", "hf://me/tiny@main"):
        assert equal(uvit_jax.load(name)[1], params)
    opened = open_run("hf://me/tiny")
    assert opened.read_run() == run and opened.read_vocabulary().classes
    export_checkpoint.main(["--checkpoint=hf://me/tiny", "--push_to_hub=me/again", "--private"])
    files = server.repositories["me/again"]
    assert equal(uvit_jax.load("hf://me/again")[1], params)
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: uvit_jax\n") and 'load("hf://me/again")' in card
    assert f"{uvit_jax.load('hf://me/again')[0].num_params / 1e6:.2f}M" in card
    assert "hf://me/again: our own form" in capsys.readouterr().out


def test_a_pushed_adapter_is_loaded_bit_for_bit(server, stored, tmp_path):
    model, _ = uvit_jax.load(stored[0])
    config = lora.LoraConfig(rank=2)
    factors = lora.init(jax.random.key(0), model.abstract_params, config)
    record = adapters.AdapterRecord(lora=config, base="abc", training={"prompt": "@1 | bear"})
    adapters.save(tmp_path / "adapter", model, factors, record)
    files = {p.name: p for p in (tmp_path / "adapter").iterdir()}
    (tmp_path / "README.md").write_text(adapter_card("me/bear", record))
    remote.push("me/bear", {**files, "README.md": tmp_path / "README.md"}, message="x")
    pulled, same = adapters.load("hf://me/bear", model, base="abc")
    assert same.lora == config
    assert jax.tree.all(jax.tree.map(np.array_equal, pulled, factors))
    assert "| prompt | @1 / bear |" in server.repositories["me/bear"]["README.md"].decode()


def test_refusals_are_one_line_without_the_token(server, stored, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    server.repositories["me/empty"] = {}
    messages = []

    def refused(match, call):
        with pytest.raises(UvitError, match=match) as caught:
            call()
        messages.append(str(caught.value))

    refused("check its name", lambda: uvit_jax.load("hf://me/none"))
    refused("revision", lambda: uvit_jax.load("hf://me/empty@v2"))
    refused("OWNER/NAME", lambda: uvit_jax.load("hf://me"))
    refused("OWNER/NAME", lambda: remote.push("me", {}, message="x"))
    push = lambda: remote.push("me/x", {"a": stored[0]}, message="x")  # noqa: E731
    server.refuse = "preupload"
    refused("status 400", push)
    monkeypatch.setattr(server, "refuse", "")
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}x")
    refused("log in", push)
    out, err = capfd.readouterr()
    assert TOKEN not in "".join([*messages, out, err, caplog.text])
    assert not any("\n" in message for message in messages)
    assert server.repositories.get("me/x", {}) == {}
