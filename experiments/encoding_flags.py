"""What the commands that encode a data set once have in common: flags, and what they report."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import cli

if TYPE_CHECKING:
    from uvit_jax.data.shards import ShardIndex


def add_flags(
    parser: argparse.ArgumentParser, *, stored: str, shard_size: int, batch_size: int, rows: str
) -> None:
    """Adds the flags of shards, precision and division among hosts.

    Args:
      stored: what is stored. rows: what is in a batch.
    """
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help=f"of the stored {stored}"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the computation; bfloat16 is faster on accelerators and slightly less accurate",
    )
    parser.add_argument("--shard_size", type=int, default=shard_size, help="examples per shard")
    parser.add_argument(
        "--batch_size", type=int, default=batch_size, help=f"{rows} per batch and host"
    )
    parser.add_argument("--part", metavar="I/N", help="encode only the I-th of N equal parts")
    parser.add_argument(
        "--distributed", metavar="SPEC", default="", help="as for experiments.train; sets --part"
    )


def report(
    json: str | None,
    folder: Path,
    index: "ShardIndex",
    written: int,
    began: float,
    results: dict[str, Any],
) -> None:
    """Prints what was written to a folder, and writes it with `results` to the file `json`.

    Args:
      began: the `time.perf_counter()` of the start.
    """
    seconds = time.perf_counter() - began
    finished = (folder / index.index_name).is_file()
    results = {**results, "shards": index.num_shards, "written": written}
    cli.write_json(json, {**results, "seconds": seconds, "finished": finished})
    rest = "" if finished else "; other parts are missing"
    print(f"{folder}: wrote {written} of {index.num_shards} shards in {seconds:.0f} s{rest}")
