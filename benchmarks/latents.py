"""Reading latents: examples per second, and the time of each step.

    python -m benchmarks.latents
    python -m benchmarks.latents --count=50000 --workers=8 --json=latents.json

It writes random latents in the shape of ImageNet 256's (32×32×4, with mirrored copies), and reads
and samples them in the random order of training. The files are in the page cache, since they were
just written: on slow storage, `read` takes longer.
"""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import cli
from uvit_jax.data.batches import BatchLoader, batches
from uvit_jax.data.data_config import DataConfig
from uvit_jax.data.latent_shards import LatentIndex, encode_images
from uvit_jax.data.pipeline import dataset
from uvit_jax.data.sources import latents

SHAPE = (32, 32, 4)


class FakeImages:
    """A data set of 1×1 images, since the latents do not depend on them."""

    def __init__(self):
        self.source = self

    def __getitem__(self, example: int) -> dict:
        return {"label": example % 1000, "name": str(example)}

    def decode(self, record: dict) -> dict:
        return {"image": np.zeros((1, 1, 1), np.float32)}


def write(folder: Path, dtype: str, count: int) -> float:
    """Writes `count` random latents and their mirror images; returns the seconds it took."""
    index = LatentIndex(
        shape=SHAPE,
        count=count,
        shard_size=2048,
        mirrored=True,
        dtype=dtype,
        scale=0.18215,
        labels=True,
        captions=False,
        class_names=tuple(map(str, range(1000))),
        words=None,
        source={"name": "none"},
        autoencoder={"file": "none", "config": {"dtype": "float32"}},
    )
    moments = np.random.default_rng(0).normal(size=(64, 32, 32, 8)).astype(np.float32)
    moments[..., 4:] -= 10
    began = time.perf_counter()
    encode_images(folder, index, FakeImages(), lambda images: moments, batch_size=64)
    return time.perf_counter() - began


def rate(config: DataConfig, batch_size: int, seconds: float) -> float:
    """Examples per second of the training iterator, measured for about `seconds`."""
    iterator = batches(config, batch_size=batch_size, seed=0)
    for _ in range(4):  # opens files and fills the queue
        next(iterator)
    began, count = time.perf_counter(), 0
    while time.perf_counter() < began + seconds:
        count += len(next(iterator)["image"])
    taken = time.perf_counter() - began
    iterator.close()
    return count / taken


def parts(config: DataConfig, batch_size: int) -> dict[str, float]:
    """The minimal microseconds per example of each step, in one thread."""
    data = dataset(config)
    rng = np.random.default_rng(0)
    indices = rng.integers(0, len(data), batch_size).tolist()
    bits = rng.integers(0, 2**63, batch_size).tolist()
    planes = np.empty((batch_size, 2, int(np.prod(SHAPE))), np.float32)
    options = dict(batch_size=1, seed=0, rows=[0], train=True)
    order = BatchLoader(data, **options).order
    records = [data.source.read(i) for i in indices]

    def unpack():
        for row, record in enumerate(records):
            data.source.unpack(record, planes[row])

    steps = {
        "order": lambda: [int(order[i]) for i in range(batch_size)],
        "read": lambda: [
            data.source.read(i, bool(c & 1)) for i, c in zip(indices, bits, strict=True)
        ],
        "unpack": unpack,
        "sample": lambda: latents.sample_moments(planes, bits),
        "all": lambda: data.batch(indices, bits),
    }
    return {name: _microseconds(step) / batch_size for name, step in steps.items()}


def _microseconds(step) -> float:
    times = []
    for _ in range(20):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e6 * min(times)  # longer times are due to other processes


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = cli.Parser(__doc__, config=False)
    parser.add_argument("--count", type=int, default=8192, help="examples to write")
    parser.add_argument("--batch_size", type=int, default=256, help="examples per batch")
    parser.add_argument("--workers", type=int, action="append", help="threads; may be repeated")
    parser.add_argument("--seconds", type=float, default=3, help="duration of each measurement")
    args = parser.parse(argv)
    results = []
    for dtype in ("float16", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            written = write(Path(folder), dtype, args.count)
            print(f"{dtype}: {args.count} examples and mirror images written in {written:.1f} s")
            config = DataConfig(name="latents", path=folder, labels="label", flip=True, workers=0)
            shares = parts(config, args.batch_size)
            text = ", ".join(f"{name} {value:.0f}" for name, value in shares.items())
            print(f"  microseconds per example in one thread: {text}")
            for workers in args.workers or (0, 1, 2, 4):
                chosen = dataclasses.replace(config, workers=workers)
                speed = rate(chosen, args.batch_size, args.seconds)
                print(f"  workers={workers}: {speed:,.0f} examples/s")
                results.append({"dtype": dtype, "workers": workers, "examples_per_second": speed})
            results[-1]["microseconds"] = shares
    cli.write_json(args.json, results)
    return 0


if __name__ == "__main__":
    cli.run(main)
