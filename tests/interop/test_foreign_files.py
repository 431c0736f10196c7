"""Weights as other programs save them: any dtype, wrapped, in shards; damaged sizes are refused."""

import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from uvit_jax.encoders.weights import read_npz
from uvit_jax.errors import UvitError
from uvit_jax.interop import mapping
from uvit_jax.interop.files import read_tensors
from uvit_jax.interop.weight_files import WEIGHTS, open_weights


def written(path, header, data=b"", length=None):
    """A safetensors file of this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I8": np.int8,
    "U64": np.uint64,
    "BOOL": np.bool_,
}


@pytest.mark.parametrize("name", DTYPES)
def test_any_dtype_is_read_and_only_floats_are_weights(name, tmp_path):
    array = np.array([1, 0], DTYPES[name])
    data = array.tobytes()
    header = entry(name, offsets=(0, len(data)))
    tensors = read_tensors(written(tmp_path / "x.safetensors", header, data))
    assert tensors["w"].dtype == array.dtype and tensors["w"].tolist() == array.tolist()
    entries, abstract = [mapping.Entry("w", "a")], {"a": np.zeros(2, np.float32)}
    if name in ("I8", "U64", "BOOL"):
        with pytest.raises(UvitError, match=r"w has dtype \w+, not floats"):
            mapping.imported(entries, tensors, abstract, "x")
    else:
        assert mapping.imported(entries, tensors, abstract, "x")["a"].tolist() == [1, 0]


def test_values_beyond_float32_are_not_finite():
    with pytest.raises(UvitError, match="not finite"):
        mapping.imported(
            [mapping.Entry("w", "a")], {"w": np.array([1e300])}, {"a": np.zeros(1)}, "x"
        )


@pytest.mark.parametrize(
    "header, data, length",
    [
        (entry(offsets=(0, 2**40), shape=(2**38,)), b"1" * 8, None),
        (entry(shape=(2**40,)), b"1" * 8, None),
        (entry(shape=(-1,)), b"1" * 8, None),
        (entry(offsets=(8, 0)), b"1" * 8, None),
        (entry("F4"), b"1" * 8, None),
        (entry("C64", shape=(1,)), b"1" * 8, None),
        (entry(), b"1" * 8, 2**62),
        (b"[" * 5000, b"", None),
        ({"w": 3}, b"", None),
        (b"{}", b"", 1),
        (b"", b"", 0),
    ],
)
def test_damaged_headers_are_refused_in_a_line_that_names_the_file(header, data, length, tmp_path):
    path = written(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(UvitError, match=r"x\.safetensors") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["module.a.w", "module.module.a.w", "_orig_mod.a.w", "module._orig_mod.a.w"]
)
def test_wrappers_of_names_are_taken_off(name, tmp_path):
    w, path = np.ones(2, np.float32), tmp_path / "x.safetensors"
    safetensors.numpy.save_file({name: w, name.replace("a.", "a._orig_mod.b."): w}, path)
    assert sorted(read_tensors(path)) == ["a.b.w", "a.w"]
    safetensors.numpy.save_file({"module.w": w, "w": w}, path)  # no wrapper of all names
    assert sorted(read_tensors(path)) == ["module.w", "w"]
    safetensors.numpy.save_file({"_orig_mod.w": w, "w": w}, path)
    with pytest.raises(UvitError, match="'w' twice"):
        read_tensors(path)


def test_shards_are_read_together(tmp_path):
    names = [tmp_path / f"x-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, name in enumerate(names):
        safetensors.numpy.save_file({f"w{i}": np.ones(1, np.float32)}, name)
    assert sorted(read_tensors(names[0])) == sorted(read_tensors(names[1])) == ["w0", "w1"]
    safetensors.numpy.save_file({"w0": np.ones(1, np.float32)}, names[1])
    with pytest.raises(UvitError, match=r"00002-of-00002.* 'w0', as another shard"):
        read_tensors(names[0])
    names[1].unlink()
    with pytest.raises(UvitError, match=r"x-00002-of-00002\.safetensors, a shard .*not exist"):
        read_tensors(names[0])


@pytest.mark.parametrize("end", ["", ".fp16", "-00001-of-00001", ".fp16-00001-of-00001"])
def test_variants_and_shards_of_diffusers(end, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    w = np.ones(2, np.float16)
    safetensors.numpy.save_file({"w": w}, tmp_path / f"{WEIGHTS}{end}.safetensors")
    assert open_weights(tmp_path).tensors["w"].tolist() == [1, 1]


def test_wrappers_and_kinds_of_tensors_of_pytorch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is the extra `interop`")
    path, w = tmp_path / "x.pth", torch.ones(2)
    for wrapped in (
        {"w": torch.nn.Parameter(w)},
        {"state_dict": {"w": w}, "epoch": 3},
        {"state_dict": {"module.w": w, "n_averaged": torch.tensor(3)}},
        {"model_state_dict": {"state_dict": {"_orig_mod.w": w.double()}}},
        {"ema": {"module.w": w.bfloat16()}, "model": {}},
        {"w": w.to(torch.float8_e4m3fn)},
    ):
        torch.save(wrapped, path)
        tensors = read_tensors(path)
        assert list(tensors) == ["w"] and tensors["w"].dtype == np.float32
        assert tensors["w"].tolist() == [1, 1]
    for odd in (
        torch.zeros(1).expand(2**40),
        torch.eye(2).to_sparse(),
        torch.quantize_per_tensor(w, 1.0, 0, torch.qint8),
        torch.zeros(2**40, device="meta"),
    ):
        torch.save({"w": odd}, path)
        with pytest.raises(UvitError, match=r"x\.pth") as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)
    for other in ({"w": 3}, [w], w, {1: w}, {"state_dict": 3}):
        torch.save(other, path)
        with pytest.raises(UvitError, match="flat dict of tensors"):
            read_tensors(path)


def npy(shape="(2,)", descr="'<f4'", data=b"1" * 8):
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + data


@pytest.mark.parametrize(
    "member",
    [
        npy(shape="(1099511627776,)"),
        npy(shape="(-1,)"),
        npy(shape="(1, 'a')"),
        npy(shape="("),
        npy(descr="'|O'"),
        npy(descr="'<f99'"),
        npy(data=b"1"),
        npy()[:9],
        b"\x93NUMPY\x09\x00",
        b"text",
        b"",
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damaged_npz_are_refused_in_a_line_that_names_the_file(member, method, tmp_path):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("w.npy", member)
    with pytest.raises(UvitError, match=r"x\.npz is damaged or not an npz") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


def test_npz_of_any_compression_are_read_and_cut_ones_refused(tmp_path):
    path = tmp_path / "x.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, a=np.zeros(10**6), b=np.arange(3, dtype=np.uint8))
        assert {k: v.size for k, v in read_npz(path).items()} == {"a": 10**6, "b": 3}
        whole = path.read_bytes()
        for cut in (whole[:-30], whole[:100], whole[100:], b""):
            path.write_bytes(cut)
            with pytest.raises(UvitError, match=r"x\.npz is damaged"):
                read_npz(path)
