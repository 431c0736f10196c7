"""Runs the notebooks of colab/ at full size and stores their outputs.

    python tools/store_notebooks.py                            # all of them, one after another
    python tools/store_notebooks.py quickstart --timeout=3600  # seconds per cell

Each runs in a temporary folder, on the available devices. Of a progress bar only the last state is
stored. A notebook that fails is not changed.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).parents[1]
MAX_BYTES = 1_500_000
NOISE = re.compile(  # log lines on stderr of compilers, kernels and libtpu without a TPU
    r"[WEI]\d{4} |\[IPKernelApp\]|\s*$|WARNING: Logging before|=== Source Location|\S+\.cc:\d+$"
    r"|Failed to find host bounds"
)


def run(name: str, timeout: float) -> nbformat.NotebookNode:
    """A notebook with fresh outputs."""
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory(prefix=f"{name}_") as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(notebook, timeout=timeout, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # timestamps, which differ in every run
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    return notebook


def tidy(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs without text that carriage returns overwrote, and with each image once, as PNG."""
    tidied: list[nbformat.NotebookNode] = []
    for output in outputs:
        before = tidied[-1] if tidied else None
        if output.output_type != "stream":
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)
            tidied.append(output)
        elif before and before.output_type == "stream" and before.name == output.name:
            before.text += output.text  # a progress bar's states are separate outputs
        else:
            tidied.append(output)
    for output in tidied:
        if output.output_type == "stream":
            # Only \n ends a line: a progress bar's states are parts of one line.
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.text.split("\n")]
            if output.name == "stderr":
                lines = [line for line in lines if not NOISE.match(line)]
            output.text = "\n".join(lines).strip("\n") + "\n"
    return [o for o in tidied if o.output_type != "stream" or o.text.strip()]


def main() -> int:
    """Runs the command and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(path.stem for path in (ROOT / "colab").glob("*.ipynb"))
    parser.add_argument("names", nargs="*", default=known, help="default: all")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds per cell")
    args = parser.parse_args()
    for name in args.names:
        began = time.perf_counter()
        text = nbformat.writes(run(name, args.timeout)) + "\n"
        if len(text.encode()) > MAX_BYTES:
            print(f"{name}: {len(text.encode())} bytes are more than {MAX_BYTES}; not stored")
            return 1
        (ROOT / "colab" / f"{name}.ipynb").write_text(text)
        print(f"{name}: {len(text.encode())} bytes, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
