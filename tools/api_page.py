"""Writes docs/api.md: the public names with their signatures and docstrings.

    python tools/api_page.py

The page is not committed. The sources are parsed, not imported; a public name without a docstring
is an error.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/api.md"

# By heading: files and their public names. Methods are public without a leading underscore.
PUBLIC: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "The package": (
        ("training/load.py", ("load",)),
        ("models/model.py", ("build", "Model")),
        ("errors.py", ("UvitError",)),
    ),
    "Token layouts": (
        ("tokens/segment.py", ("Segment",)),
        ("tokens/layout.py", ("Layout",)),
        ("tokens/reference_inputs.py", ("reference_inputs",)),
    ),
    "Models": (
        ("models/model_config.py", ("ModelConfig", "BackboneConfig", "parse_model")),
        ("models/presets/uvit.py", ("preset",)),
        ("models/presets/dit.py", ("preset",)),
        ("models/presets/unified.py", ("preset",)),
        ("models/cost.py", ("forward_cost", "Cost")),
        ("models/lora.py", ("LoraConfig", "init", "attach", "merge")),
        ("autoencoders/kl.py", ("Autoencoder", "encode_in_batches", "decode_in_batches")),
    ),
    "Diffusion": (
        ("diffusion/schedule.py", ("ScheduleConfig", "make")),
        ("diffusion/objective.py", ("ObjectiveConfig", "corrupt", "loss")),
        ("diffusion/process.py", ("Denoised", "add_noise", "denoiser")),
        ("diffusion/solvers/table.py", ("SamplerConfig",)),
        ("diffusion/solvers/solve.py", ("sample", "num_evaluations")),
    ),
    "Sampling": (
        ("sampling/sampler.py", ("SampleConfig", "make_sampler")),
        (
            "sampling/conditions.py",
            ("conditions_for", "conditions_like", "uniform_labels"),
        ),
        ("sampling/decoding.py", ("decoder", "decoded")),
        ("io.py", ("grid", "save_png", "to_uint8")),
    ),
    "Data": (
        ("data/data_config.py", ("DataConfig",)),
        ("data/pipeline.py", ("dataset",)),
        ("data/batches.py", ("batches", "BatchIterator")),
        ("data/dataset.py", ("Dataset",)),
        ("data/sources/source.py", ("Source",)),
        ("data/vocabulary.py", ("Vocabulary",)),
        ("data/tokenizer.py", ("Tokenizer",)),
    ),
    "Training": (
        ("training/run_config.py", ("RunConfig", "TrainConfig", "OptimizerConfig", "parse_run")),
        ("training/loop.py", ("train", "Summary")),
        ("training/optimizer.py", ("make_optimizer",)),
        ("training/state.py", ("TrainState", "init_state")),
        ("training/step.py", ("make_step", "jit_step")),
        ("training/workdir.py", ("Workdir",)),
        ("training/examples.py", ("stacked", "class_examples")),
        ("training/finetune.py", ("FinetuneConfig", "Finetuner", "Tuned")),
    ),
    "Meshes and pods": (
        ("parallel/mesh.py", ("MeshConfig", "make_mesh", "abstract_mesh")),
        ("parallel/sharding.py", ("shardings", "spec", "jit_replicated")),
        ("aot/sharding_plan.py", ("plan_run",)),
        ("aot/compile_run.py", ("compile_run", "CompileReport")),
        ("parallel/distributed.py", ("initialize",)),
    ),
    "Evaluation": (
        ("encoders/image_encoder.py", ("encoder", "Encoder")),
        ("evaluation/image_sets.py", ("ImageSet", "of_file", "of_array", "of_dataset")),
        ("evaluation/image_metrics.py", ("encode", "metrics", "ImageFeatures")),
        ("evaluation/frechet.py", ("frechet_distance", "Statistics", "read_statistics")),
        ("evaluation/precision_recall.py", ("precision_recall",)),
        ("evaluation/scores.py", ("inception_score", "kernel_distance")),
        ("evaluation/statistics.py", ("mean_interval", "paired_interval", "Interval")),
    ),
    "Weights in and out": (
        ("interop/exporting.py", ("export",)),
        ("training/importing.py", ("import_checkpoint",)),
        ("interop/adapters.py", ("load", "save")),
        ("autoencoders/kl_weights.py", ("load_autoencoder",)),
        ("encoders/clip_weights.py", ("load_text_encoder",)),
    ),
}
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
HEAD = """# API

Generated from docstrings by `python tools/api_page.py`; do not edit. One capital letter stands for
a dimension: B batch, N tokens, D width, H heads (or height), K head size, C channels, L layers.
"""


def page() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    anchors = [f"[{heading}](#{heading.lower().replace(' ', '-')})" for heading in PUBLIC]
    parts.append(" · ".join(anchors) + "\n")
    for heading, files in PUBLIC.items():
        parts.append(f"## {heading}\n")
        for file, names in files:
            tree = ast.parse((ROOT / "uvit_jax" / file).read_text())
            nodes = {node.name: node for node in tree.body if hasattr(node, "name")}
            parts += [entry(file, nodes[name]) for name in names]
    return "\n".join(parts)


def entry(file: str, node: ast.AST) -> str:
    """The entry of a function or class."""
    module = "uvit_jax." + file.removesuffix(".py").replace("/", ".")
    lines = [f"### {title(node, module)}\n", f"`{module}.{node.name}`\n"]
    if isinstance(node, ast.FunctionDef):
        lines.append(f"```python\n{signature(node)}\n```\n")
        lines.append(prose(node, file))
        return "\n".join(lines)
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    init = next((n for n in methods if n.name == "__init__"), None)
    if init is not None:
        lines.append(f"```python\n{signature(init, node.name)}\n```\n")
    elif fields := [n for n in node.body if isinstance(n, ast.AnnAssign)]:
        body = "\n".join(f"    {ast.unparse(n)}" for n in fields)
        lines.append(f"```python\nclass {node.name}:\n{body}\n```\n")
    lines.append(prose(node, file))
    for method in methods:
        if not method.name.startswith("_") or (method.name == "__call__" and _doc(method)):
            decorators = [ast.unparse(d) for d in method.decorator_list]
            kind = "property " if "property" in decorators else ""
            call = method.name if kind else _on_one_line(method)
            lines.append(f"**{kind}`{call}`**\n")
            lines.append(prose(method, file))
    return "\n".join(lines)


def title(node: ast.AST, module: str) -> str:
    """A unique heading: names that several modules have are qualified with the module's."""
    short = {"preset", "make", "load", "save", "init", "attach", "merge", "spec"}
    short |= {"loss", "corrupt", "sample", "encode", "metrics", "grid", "train"}
    last = module.rpartition(".")[2]
    return f"{last}.{node.name}" if node.name in short and node.name != last else node.name


def signature(node: ast.FunctionDef, name: str = "") -> str:
    """`def name(arguments) -> result`, with one argument per line if it is long."""
    arguments = node.args
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args = arguments.args[1:]
    inner = ", ".join(_split(arguments))
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    result = "" if name else result.replace("'", "")
    head = name or f"def {node.name}"
    line = f"{head}({inner}){result}"
    if len(line) <= 88:
        return line
    return f"{head}(\n" + "".join(f"    {one},\n" for one in _split(arguments)) + f"){result}"


def _on_one_line(node: ast.FunctionDef) -> str:
    words = " ".join(signature(node).removeprefix("def ").split())
    return words.replace("( ", "(").replace(", )", ")")


def _split(arguments: ast.arguments) -> list[str]:
    """The source of each argument, with the star before keyword-only ones."""
    empty = dict(posonlyargs=[], kw_defaults=[], defaults=[], kwonlyargs=[])
    parts = []
    missing = len(arguments.args) - len(arguments.defaults)
    for i, a in enumerate(arguments.args):
        default = arguments.defaults[i - missing : i - missing + 1] if i >= missing else []
        parts.append(ast.arguments(**empty | dict(args=[a], defaults=default)))
    if arguments.kwonlyargs and not arguments.vararg:
        parts.append(ast.Name("*"))
    elif arguments.vararg:
        parts.append(ast.arguments(**empty | dict(args=[], vararg=arguments.vararg)))
    for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        defaults = [default] if default is not None else []
        parts.append(ast.arguments(**empty | dict(args=[a], defaults=defaults)))
    if arguments.kwarg:
        parts.append(ast.arguments(**empty | dict(args=[], kwarg=arguments.kwarg)))
    texts = [ast.unparse(one) for one in parts]
    return [re.sub(r"^(\w+: [^=]+)=", r"\1 = ", text) for text in texts]


def prose(node: ast.AST, file: str) -> str:
    """A docstring as Markdown, with its sections as lists.

    Raises:
      SystemExit: if there is none.
    """
    text = _doc(node)
    if not text:
        raise SystemExit(f"uvit_jax/{file}: {node.name} is public and has no docstring")
    pattern = rf"^({'|'.join(SECTIONS)}):\n"
    first, *rest = re.split(pattern, text, flags=re.MULTILINE)
    lines = [_paragraphs(first)]
    for kind, body in zip(rest[::2], rest[1::2], strict=True):
        section, _, after = body.partition("\n\n")
        # A section ends where its indentation does.
        while after and after.startswith("  "):
            more, _, after = after.partition("\n\n")
            section += f"\n\n{more}"
        lines.append(f"*{kind}*\n\n{_items(kind, section)}\n")
        if after.strip():
            lines.append(_paragraphs(after))
    return "\n".join(lines)


def _items(kind: str, section: str) -> str:
    body = textwrap.dedent(section).strip()
    if kind == "Returns":
        return " ".join(body.split())
    # A name on a line of its own, or after another's sentence.
    entries = re.split(r"\n(?=\S)|(?<=[.;]) (?=[a-z_\d]+(?:, [a-z_\d]+)*: )", body)
    items = []
    for text in entries:
        names, colon, meaning = " ".join(text.split()).partition(": ")
        named = ", ".join(f"`{name}`" for name in names.split(", "))
        items.append(f"- {named}: {meaning}" if colon else f"- {names}")
    return "\n".join(items)


def _paragraphs(text: str) -> str:
    """One line per paragraph; indented text becomes a code block."""
    paragraphs = []
    for part in text.strip("\n").split("\n\n"):
        if part.startswith(" ") or re.search(r"^    ", part, flags=re.MULTILINE):
            paragraphs.append(f"```\n{inspect.cleandoc(part)}\n```")
        else:
            paragraphs.append(" ".join(part.split()))
    return "\n\n".join(part for part in paragraphs if part) + "\n"


def _doc(node: ast.AST) -> str:
    return ast.get_docstring(node) or ""


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
