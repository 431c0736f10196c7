"""Compiles a run's training step or sampler for devices that need not be present.

    report = compile_run(run, "v5e:4x4")        # or what="sample"

Nothing is run or timed. Memory and collectives are the compiler's. Times are lower bounds by the
roofline model (Williams et al. 2009): matrix products at peak FLOP/s, memory traffic at full
bandwidth, collectives on all links.
"""

import collections
import dataclasses
import re
import time
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from uvit_jax.aot import traffic
from uvit_jax.aot.chips import GIB, Chip
from uvit_jax.aot.hlo import Module
from uvit_jax.aot.topology import devices_of
from uvit_jax.data.vocabulary import TextFeatures, Vocabulary
from uvit_jax.errors import UvitError
from uvit_jax.models.cost import count, forward_cost
from uvit_jax.models.model import Model, build
from uvit_jax.parallel.attention.implementations import check_platform
from uvit_jax.parallel.mesh import make_mesh
from uvit_jax.parallel.sharding import jit_replicated, path_string, spec
from uvit_jax.sampling import modes
from uvit_jax.sampling.sampler import SampleConfig, Sampler, make_sampler
from uvit_jax.training.optimizer import make_optimizer
from uvit_jax.training.run_config import RunConfig, check_mesh
from uvit_jax.training.state import abstract_state
from uvit_jax.training.step import jit_step, make_step

Program = Literal["step", "sample"]

# Autotuning of XLA's own matrix products needs a GPU; without, cuBLAS computes all of them.
OPTIONS = {"gpu": {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """A lower bound on the time of one run of the program; not a measurement.

    Attributes:
      compute, memory, links: seconds at the chip's peak FLOP/s, memory bandwidth, link bandwidth.
      seconds: the largest of the three. limit: its name. images_per_second: of all chips together.
    """

    compute: float
    memory: float
    links: float
    seconds: float
    limit: str
    images_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileReport:
    """Memory, FLOPs and communication of a compiled program, per chip and per run of the program.

    Attributes:
      topology, what: arguments of `compile_run`. chips: their number.
      batch_size, mesh, attention, remat, accumulate: of the run.
      fits: whether the program fits the chip's memory. memory_bytes: its peak; 0 if the compiler
        ran out of memory without naming it. chip_memory_bytes: available to a program.
      model_flops: of three forward passes for a training step, of all network evaluations for
        sampling. program_flops: of the program, with recomputation and Muon's products.
      traffic_bytes: in and out of main memory. intensity: program_flops / traffic_bytes.
      collectives: the largest first. moved: their bytes by role and kind.
      gathered_activations: bytes of activations in all-gathers and permutations; 0 if each chip
        computes its own examples only.
      kernels: custom kernels by name, with their number of calls in the program text.
      compile_seconds: wall time. bound: the roofline.

    The fields with defaults stay empty if the compiler ran out of memory.
    """

    topology: str
    what: str
    chips: int
    batch_size: int
    mesh: dict[str, int]
    attention: str
    remat: str
    accumulate: int
    fits: bool
    memory_bytes: int
    chip_memory_bytes: int
    compile_seconds: float
    model_flops: float
    program_flops: float
    traffic_bytes: int = 0
    intensity: float = 0.0
    collectives: tuple[traffic.Collective, ...] = ()
    moved: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    gathered_activations: int = 0
    kernels: dict[str, int] = dataclasses.field(default_factory=dict)
    bound: Roofline | None = None


def compile_run(run: RunConfig, topology: str, what: Program = "step") -> CompileReport:
    """Compiles a run's training step, or its sampler, for a topology.

    Args:
      run: the run's config.
      topology: such as `v5e:4x4` or `gpu:h100x8`, see `aot.topology.devices_of`.
      what: `step` or `sample`.

    Raises:
      UvitError: if the topology is unknown or its compiler is not installed, if the topology does
        not match the run's mesh, batch or attention, or if the compiler refuses the program for
        anything but the chip's memory.
    """
    devices, chip = devices_of(topology)
    return compile_for(run, devices, chip, topology, what)


def compile_for(
    run: RunConfig, devices: list[Any], chip: Chip, topology: str, what: Program = "step"
) -> CompileReport:
    """`compile_run` for given devices."""
    mesh = make_mesh(run.mesh, devices)
    check_platform(run.model.backbone.attention, devices[0].platform)
    model = build(run.model)
    began = time.perf_counter()
    compiled, memory_bytes = None, 0
    try:
        compiled = lower(run, model, mesh, what).compile(OPTIONS.get(devices[0].platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory_bytes = _requested_bytes(str(error))
        if memory_bytes < chip.memory_bytes // 2:  # another memory, such as a kernel's
            raise UvitError(
                f"the compiler refuses the program for {topology}, not for the chip's memory: "
                f"{str(error).splitlines()[0]}; try another config.model.backbone.attention"
            ) from None
    seconds = time.perf_counter() - began
    if compiled is not None:
        memory = compiled.memory_analysis()
        memory_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes
        memory_bytes += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        memory_bytes += memory.generated_code_size_in_bytes
    batch = run.train.batch_size if what == "step" else run.sample.count
    macs = _macs(run, what, mesh)
    model_macs = macs
    if what == "step":
        model_macs = 3 * batch * forward_cost(run.model, draws=run.train.draws).total
    report = CompileReport(
        topology=topology,
        what=what,
        chips=mesh.size,
        batch_size=batch,
        mesh=dict(mesh.shape),
        attention=run.model.backbone.attention,
        remat=run.model.backbone.remat,
        accumulate=run.train.accumulate if what == "step" else 1,
        fits=compiled is not None and memory_bytes <= chip.memory_bytes,
        memory_bytes=memory_bytes,
        chip_memory_bytes=chip.memory_bytes,
        compile_seconds=seconds,
        model_flops=2 * model_macs / mesh.size,
        program_flops=2 * macs / mesh.size,
    )
    if compiled is None:
        return report
    return _with_traffic(report, Module(compiled.as_text()), model, mesh, chip)


def lower(run: RunConfig, model: Model, mesh: Mesh, what: Program = "step") -> jax.stages.Lowered:
    """Traces a run's training step, or its sampler, on a mesh, without compiling it."""
    with jax.set_mesh(mesh):
        program, arguments = {"step": _step, "sample": _sample}[what](run, model, mesh)
        return program.lower(*arguments)


def _step(run: RunConfig, model: Model, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple]:
    """The trainer's jitted step and the shapes of its arguments."""
    check_mesh(run, mesh)
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    state, state_shardings = abstract_state(model, optimizer, mesh)
    step = make_step(model, run, optimizer, rate, _vocabulary(model))
    return jit_step(step, state_shardings, mesh), (
        state,
        model.abstract_inputs(run.train.batch_size),
    )


def _sample(run: RunConfig, model: Model, mesh: Mesh) -> tuple[jax.stages.Wrapped, tuple]:
    """The trainer's jitted sampler of the EMA parameters and the shapes of its arguments."""
    check_mesh(run, mesh)
    optimizer, _ = make_optimizer(run.optimizer, run.train)
    state, state_shardings = abstract_state(model, optimizer, mesh)
    program = jit_replicated(_sampler(run, model), mesh, state_shardings.ema)
    return program, (state.ema, (state.key, _conditions(model, run.sample)))


def _sampler(run: RunConfig, model: Model) -> Sampler:
    count = run.sample.count
    return make_sampler(
        model, run.diffusion, run.sample, batch_size=count, vocabulary=_vocabulary(model)
    )


def _conditions(model: Model, sample: SampleConfig) -> dict[str, jax.ShapeDtypeStruct]:
    inputs = model.abstract_inputs(sample.count)
    names = list(model.layout.condition_shapes)
    if given := modes.GIVEN.get(sample.mode):
        names += modes.modalities(model.layout, sample.mode)[given][1]
    return {name: inputs[name] for name in names}


def _vocabulary(model: Model) -> Vocabulary:
    """A vocabulary with a stand-in for the text features of the empty text."""
    shapes = [s.shape for s in model.layout.conditions if s.kind == "features"]
    features = TextFeatures(np.zeros(shapes[0], np.float32)) if shapes else None
    return Vocabulary(features=features)


def _macs(run: RunConfig, what: Program, mesh: Mesh) -> int:
    """Multiply-accumulates of the traced program, over all chips."""
    # Products inside a custom attention kernel cannot be counted.
    backbone = dataclasses.replace(run.model.backbone, attention="xla")
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, backbone=backbone))
    model = build(run.model)
    if what == "sample":
        sampler = _sampler(run, model)
        key = jax.eval_shape(lambda: jax.random.key(0))
        conditions = _conditions(model, run.sample)
        return count(jax.make_jaxpr(sampler)(model.abstract_params, key, conditions).jaxpr).total
    optimizer, rate = make_optimizer(run.optimizer, run.train)
    state, _ = abstract_state(model, optimizer, mesh)
    step = make_step(model, run, optimizer, rate, _vocabulary(model))
    inputs = model.abstract_inputs(run.train.batch_size)
    return count(jax.make_jaxpr(step)(state, inputs).jaxpr).total


def _with_traffic(
    report: CompileReport, module: Module, model: Model, mesh: Mesh, chip: Chip
) -> CompileReport:
    collectives = traffic.collectives(module, mesh.size, _sizes(model, mesh))
    moved: dict[str, dict[str, int]] = {role: {} for role in traffic.ROLES}
    for c in collectives:
        moved[c.role][c.kind] = moved[c.role].get(c.kind, 0) + c.bytes
    memory = traffic.memory_bytes(module)
    kernels = collections.Counter(
        re.search(r'custom_call_target="([^"]*)"', i.attributes).group(1)
        for _, i, _ in module.executed()
        if i.opcode == "custom-call" and "custom_call_target" in i.attributes
    )
    limits = {
        "compute": report.program_flops / chip.flops,
        "memory": memory / chip.memory_bandwidth,
        "links": sum(c.bytes for c in collectives) / chip.link_bandwidth,
    }
    limit = max(limits, key=limits.get)
    bound = Roofline(
        **limits,
        seconds=limits[limit],
        limit=limit,
        images_per_second=report.batch_size / limits[limit],
    )
    gathered = ("all-gather", "collective-permute")
    return dataclasses.replace(
        report,
        traffic_bytes=memory,
        intensity=report.program_flops / max(1, memory),
        collectives=tuple(collectives),
        moved={role: kinds for role, kinds in moved.items() if kinds},
        gathered_activations=sum(moved["activations"].get(kind, 0) for kind in gathered),
        kernels=dict(kernels),
        bound=bound,
    )


def _sizes(model: Model, mesh: Mesh) -> list[tuple[int, int]]:
    """Elements of each parameter in a layer: gathered over fsdp, and a chip's shard."""
    sizes = []
    for path, a in jax.tree_util.tree_leaves_with_path(model.abstract_params):
        name = path_string(path)
        partition = spec(name, a.shape, mesh)
        axes = [n for n in partition if n is not None]
        size = a.size // (a.shape[0] if re.search(r"(in_|out_|/)blocks/", name) else 1)
        tensor = mesh.shape["tensor"] if "tensor" in axes else 1
        fsdp = mesh.shape["fsdp"] if "fsdp" in axes else 1
        sizes.append((size // tensor, size // tensor // fsdp))
    return sizes


def _requested_bytes(message: str) -> int:
    """The bytes that an out-of-memory message names as the program's; 0 if it names none."""
    for pattern in (r"Used ([\d.]+)([GM]) of", r"\(([\d.]+)([GM])\) exceeds available"):
        if size := re.search(pattern, message):
            return int(float(size[1]) * {"G": GIB, "M": 2**20}[size[2]])
    return 0
