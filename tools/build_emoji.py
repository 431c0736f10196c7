"""Builds the embedded emoji: 64x64 images and their index.

    pip install "resvg-py==0.5.0" "pillow==13.0.0"
    python tools/build_emoji.py

fetches five pinned npm packages into a temporary folder with `npm pack` (or reads them from
`--packages FOLDER`, which holds the `.tgz` files), renders every emoji that is neither a flag nor
a skin-tone variant, and writes `uvit_jax/data/sources/emoji/images.zip` and `index.json`. The same
versions give the same bytes: the script prints both SHA-256 sums, and a test checks the sum of the
zip. A changed zip needs a new `VERSION` in `emoji_dataset_builder.py`.

An image is one (concept, vendor). A concept is an emojibase entry; its image is looked up in each
vendor's package by code points (without variation selectors) or else by name. Images are rendered
at 256x256 and averaged 4x4 with premultiplied alpha, so that colours of invisible pixels do not
affect edges; colours under zero alpha are zero.

The split of an image follows from a hash of its *family*: concepts that differ in gender or
direction only, or that some vendor draws identically, are in one split, and so are all vendors of a
concept.
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent_flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent_3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "emojibase": "emojibase-data@17.0.0",
}
# Images per pinned package; other numbers mean that a package has changed.
EXPECTED = {"noto": 1644, "twemoji": 1644, "fluent_flat": 1587, "fluent_3d": 1599}
VENDORS = tuple(EXPECTED)
EXCLUDED_GROUPS = ("component", "flags")
SIZE, SCALE = 64, 4
TEST_PERCENT = 5
OUTPUT = Path(__file__).resolve().parent.parent / "uvit_jax" / "data" / "sources" / "emoji"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, help="folder with the .tgz files of `npm pack`")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packages = arguments.packages or _fetch(Path(folder))
        concepts = _concepts(_read(packages, "emojibase"))
        jobs = [job for vendor in VENDORS for job in _jobs(vendor, concepts, packages)]
    for vendor, expected in EXPECTED.items():
        found = sum(job["vendor"] == vendor for job in jobs)
        if found != expected:
            sys.exit(f"{PACKAGES[vendor]}: {found} emoji matched, expected {expected}")
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(_render, jobs, chunksize=32))
    # By concept, then vendor.
    order = sorted(
        range(len(jobs)),
        key=lambda i: (jobs[i]["concept"]["order"], VENDORS.index(jobs[i]["vendor"])),
    )
    splits = _splits([jobs[i] for i in order], [results[i][1] for i in order])
    arguments.output.mkdir(parents=True, exist_ok=True)
    records = []
    with zipfile.ZipFile(arguments.output / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for i in order:
            record = _record(jobs[i], splits)
            records.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")))
            entry = zipfile.ZipInfo(record["key"] + ".webp", date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, results[i][0])
    (arguments.output / "index.json").write_text(
        "[\n" + ",\n".join(records) + "\n]\n", encoding="utf-8", newline="\n"
    )
    test = sum(split == "test" for split in splits.values())
    print(f"{len(jobs)} images of {len(splits)} concepts, {test} concepts in the test split")
    for name in ("images.zip", "index.json"):
        data = (arguments.output / name).read_bytes()
        print(f"{name}: {len(data) / 1e6:.2f} MB, sha256 {hashlib.sha256(data).hexdigest()}")


# --- the packages -------------------------------------------------------------------------------


def _fetch(folder: Path) -> Path:
    for name in PACKAGES.values():
        command = ["npm", "pack", name, "--silent", "--pack-destination", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def _read(packages: Path, name: str) -> dict[str, bytes]:
    """The files of one package, by their path below `package/`."""
    # How npm names the file of a package with a scope.
    archive = packages / (PACKAGES[name].lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not archive.is_file():
        sys.exit(f"{archive} is missing; get it with `npm pack {PACKAGES[name]}`")
    with tarfile.open(archive) as tar:
        return {
            member.name.partition("/")[2]: tar.extractfile(member).read()
            for member in tar
            if member.isfile()
        }


def _code(text: str) -> str:
    """Code points in one spelling: lower-case hex, no leading zeros, no variation selectors."""
    parts = [part.lower().lstrip("0") for part in text.split("-")]
    return "-".join(part for part in parts if part not in ("fe0e", "fe0f"))


def _concepts(emojibase: dict[str, bytes]) -> list[dict]:
    names = json.loads(emojibase["meta/groups.json"])
    concepts = []
    for entry in json.loads(emojibase["en/data.json"]):
        # Regional indicators have no group; skin tones are nested under their base, and left out.
        group = names["groups"].get(str(entry.get("group")), "component")
        if group in EXCLUDED_GROUPS:
            continue
        concepts.append(
            {
                "code": _code(entry["hexcode"]),
                "label": " ".join(entry["label"].lower().replace("’", "'").split()),
                "group": group,
                "subgroup": names["subgroups"][str(entry["subgroup"])],
                "tags": entry.get("tags", []),
                "order": entry["order"],
            }
        )
    return concepts


def _jobs(vendor: str, concepts: list[dict], packages: Path) -> list[dict]:
    """The arguments of `_render` for each concept that the vendor has."""
    files = _read(packages, vendor)
    if "icons.json" in files:
        icons = json.loads(files["icons.json"])
        by_code = {_code(code): name for code, name in json.loads(files["chars.json"]).items()}
        find = lambda c: _svg(icons, by_code.get(c["code"]) or _slug(c["label"]))  # noqa: E731
    else:
        by_code = {_code(Path(name).stem): data for name, data in files.items() if ".webp" in name}
        find = lambda c: (by_code[c["code"]], False) if c["code"] in by_code else None  # noqa: E731
    found = [(concept, find(concept)) for concept in concepts]
    return [
        {"concept": concept, "vendor": vendor, "source": drawing[0], "mirrored": drawing[1]}
        for concept, drawing in found
        if drawing is not None
    ]


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.replace("'", "")).strip("-")


def _svg(icons: dict, name: str) -> tuple[str, bool] | None:
    """An icon as an SVG document, and whether an alias of Iconify mirrors it."""
    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"].get(alias.get("parent", name))
    if icon is None:
        return None
    if set(alias) - {"parent", "hFlip"}:
        sys.exit(f"{icons['prefix']}: alias {name} has a transformation unknown to this script")
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    # Icons that are not square are centred by the viewBox rule of SVG itself.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE * SCALE}" height="{SIZE * SCALE}" viewBox="{left} {top} {width} {height}">'
        f"{icon['body']}</svg>",
        bool(alias.get("hFlip")),
    )


# --- the images ---------------------------------------------------------------------------------


def _render(job: dict) -> tuple[bytes, str]:
    """One job's lossless WebP, and a digest of its pixels."""
    source = job["source"]
    if isinstance(source, str):
        import resvg_py

        source = bytes(resvg_py.svg_to_bytes(svg_string=source))
    image = Image.open(io.BytesIO(source)).convert("RGBA")
    if image.size != (SIZE * SCALE, SIZE * SCALE):  # one of fluent_3d is 256x264
        square = Image.new("RGBA", (max(image.size),) * 2)
        square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
        # "RGBa" is Pillow's premultiplied mode.
        image = square.convert("RGBa").resize((SIZE * SCALE,) * 2, Image.Resampling.BOX)
        image = image.convert("RGBA")
    pixels = _reduce(np.asarray(image))
    if job["mirrored"]:
        pixels = pixels[:, ::-1]
    if pixels[..., 3].max() < 128:
        raise ValueError(f"{job['concept']['label']}, {job['vendor']}: the image is empty")
    stream = io.BytesIO()
    # Method 6 at quality 100 takes thirty times as long and saves one per cent.
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        stream, "WEBP", lossless=True, quality=80, method=4, exact=True
    )
    return stream.getvalue(), hashlib.sha256(pixels.tobytes()).hexdigest()


def _reduce(pixels: np.ndarray) -> np.ndarray:
    """RGBA uint8 (256, 256, 4) to (64, 64, 4): the mean of every 4x4, weighted with alpha."""
    # Whole numbers throughout, so that no platform rounds differently.
    values = pixels.astype(np.int64).reshape(SIZE, SCALE, SIZE, SCALE, 4)
    alpha = values[..., 3:]
    weight = alpha.sum((1, 3))
    colour = (values[..., :3] * alpha).sum((1, 3))
    colour = (2 * colour + weight) // np.maximum(2 * weight, 1)
    count = SCALE * SCALE
    alpha = (2 * weight + count) // (2 * count)
    colour[alpha[..., 0] == 0] = 0
    return np.concatenate([colour, alpha], -1).astype(np.uint8)


# --- the index ----------------------------------------------------------------------------------


def _family(code: str) -> str:
    """A concept's code with gender and direction taken out."""
    person = {"1f468": "1f9d1", "1f469": "1f9d1"}
    dropped = ("200d", "2640", "2642", "27a1")
    parts = [person.get(part, part) for part in code.split("-") if part not in dropped]
    return "-".join(parts)


def _splits(jobs: list[dict], digests: list[str]) -> dict[str, str]:
    """The split of each concept, by its code."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        parent.setdefault(node, node)
        while parent[node] != node:
            node = parent[node]
        return node

    for job, digest in zip(jobs, digests, strict=True):
        family, drawing = _family(job["concept"]["code"]), "picture " + digest
        low, high = sorted((root(family), root(drawing)))  # "1f…" sorts before "picture …"
        parent[high] = low
    splits = {}
    for job in jobs:
        code = job["concept"]["code"]
        value = int(hashlib.sha256(root(_family(code)).encode()).hexdigest(), 16) % 100
        splits[code] = "test" if value < TEST_PERCENT else "train"
    return splits


def _record(job: dict, splits: dict[str, str]) -> dict:
    concept, vendor = job["concept"], job["vendor"]
    return {
        "key": f"{vendor}/{concept['code']}",
        "vendor": vendor,
        "code": concept["code"],
        "label": concept["label"],
        "group": concept["group"],
        "subgroup": concept["subgroup"],
        "caption": f"{concept['label']}, {vendor.replace('_', ' ')}",
        "split": splits[concept["code"]],
        "tags": concept["tags"],
    }


if __name__ == "__main__":
    main()
