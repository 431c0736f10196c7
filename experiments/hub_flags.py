"""Flags of the commands that upload to the Hugging Face Hub."""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def add_flags(parser: Any) -> None:
    """Adds `--push_to_hub` and `--private`."""
    parser.add_argument(
        "--push_to_hub",
        metavar="OWNER/NAME",
        help="upload to this repository of the Hugging Face Hub, with a model card",
    )
    parser.add_argument("--private", action="store_true", help="a new repository is private")


def push(args: argparse.Namespace, files: Mapping[str, Path], card: str) -> str:
    """Uploads files, by their names there, and their card; returns the address.

    Raises:
      UvitError: as `remote.push`.
    """
    from uvit_jax import remote

    with tempfile.TemporaryDirectory() as folder:
        readme = Path(folder) / "README.md"
        readme.write_text(card)
        return remote.push(
            args.push_to_hub,
            {**files, "README.md": readme},
            message="Upload by uvit_jax",
            private=args.private,
        )
