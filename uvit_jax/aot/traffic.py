"""Communication and main-memory traffic of a compiled program.

Bytes are per chip and per run of the program. A collective's bytes are the least that a chip sends
in a group of P chips: (P - 1)/P of the unsharded array for all-gather and reduce-scatter, twice
that for all-reduce, (P - 1)/P of a chip's shard for all-to-all, all of it for a permutation.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

from uvit_jax.aot.hlo import Array, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
ROLES = ("parameters", "gradients", "activations", "scalars")
_SCALARS = 4096  # bytes; smaller arrays are losses, norms and counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program's text.

    Attributes:
      kind: one of `KINDS`. role: the content, one of `ROLES`.
      count: number of runs. bytes: sent by a chip in all of them.
      group: number of participating chips. array: the largest result, such as `bf16[16,2048]`.
      origin: the path of the JAX operation that it was compiled from.
    """

    kind: str
    role: str
    count: int
    bytes: int
    group: int
    array: str
    origin: str


def collectives(
    module: Module, num_chips: int, parameters: Iterable[tuple[int, int]]
) -> list[Collective]:
    """The collectives that run, the largest first.

    Roles are inferred from sizes: an all-gather to the size of a parameter gathers it; a reduction
    of that size is its gradient; a permutation of its shard belongs to a product that XLA merged
    with the gather (or with the gradient's scatter, in a loop named accordingly). All others are
    activations, so that a gathered batch is never counted as parameters.

    Args:
      module: the compiled program.
      num_chips: that run the program.
      parameters: (elements, elements of a chip's shard) of every parameter, per layer of a stack.
    """
    full, shard = (set(sizes) for sizes in zip(*parameters, strict=True))
    result, seen = [], set()
    for computation, instruction, times in module.executed():
        kind = _kind(module, computation, instruction)
        if kind is None:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if computation in module.fused and channel:
            # On TPUs one collective is in several fusions: its start, its steps and its end.
            if channel.group(1) in seen:
                continue
            seen.add(channel.group(1))
        arrays = _results(instruction)
        group = _group(instruction, num_chips)
        scattered = instruction.opcode.startswith("reduce-scatter")
        by_role: dict[str, list[Array]] = collections.defaultdict(list)
        for array in arrays:
            size = array.size * group if scattered else array.size
            by_role[_role(kind, computation, array, size, full, shard)].append(array)
        for role, members in by_role.items():
            total = sum(a.bytes for a in members) * (group if scattered else 1)
            largest = max(members, key=lambda a: a.bytes)
            result.append(
                Collective(
                    kind=kind,
                    role=role,
                    count=times,
                    bytes=round(total * _sent(kind, group)) * times,
                    group=group,
                    array=f"{largest.dtype}[{','.join(map(str, largest.shape))}]",
                    origin=instruction.op_name,
                )
            )
    return sorted(result, key=lambda c: -c.bytes)


def memory_bytes(module: Module) -> int:
    """Bytes that a chip reads from and writes to its main memory in one run.

    Every instruction reads its operands and writes its results once, or the slices of them that it
    uses. Arrays in on-chip memory do not count.
    """
    total = 0
    for computation, instruction, times in module.executed():
        if computation in module.fused or instruction.opcode in _FREE:
            continue
        if instruction.opcode.endswith(("-start", "-done")):
            continue
        total += times * _accessed(module, computation, instruction)
    return total


_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional"}
_FREE |= {"call", "after-all", "opt-barrier", "partition-id", "replica-id", "iota"}
_SLICES = ("dynamic-slice", "slice", "gather")


def _accessed(module: Module, computation: str, instruction: Instruction) -> int:
    instructions = module.computations[computation]
    results = _main(instruction.arrays)
    operands = [instructions[name] for name in instruction.operands if name in instructions]
    if instruction.opcode in _SLICES:
        return 2 * results
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _main(operands[1].arrays)
    if instruction.opcode != "fusion":
        return results + sum(_main(o.arrays) for o in operands)

    inside = module.computations[instruction.called["calls"]]
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for i in inside.values():
        for name in i.operands:
            users[name].append(i)
    total = 0
    for i in inside.values():
        if i.opcode != "parameter" or int(i.inside) >= len(operands):
            continue
        array = operands[int(i.inside)].arrays
        if not _main(array):
            continue
        reads = [u for u in users[i.name] if u.opcode != "dynamic-update-slice"]
        updated = len(reads) < len(users[i.name])
        if all(u.opcode in _SLICES for u in reads) and (reads or updated):
            total += sum(sum(a.bytes for a in u.arrays) for u in reads)
        else:
            total += _main(array)
    root = module.roots[instruction.called["calls"]]
    if root.opcode == "dynamic-update-slice":
        return total + sum(a.bytes for a in inside[root.operands[1]].arrays)
    return total + results


def _main(arrays: tuple[Array, ...]) -> int:
    return sum(a.bytes for a in arrays if a.space == 0)


def _kind(module: Module, computation: str, instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    if opcode == "all-reduce" and computation in module.fused:
        # On TPUs a reduce-scatter is a fusion of an all-reduce and a slice.
        root = module.roots[computation]
        if root.opcode == "dynamic-slice":
            return "reduce-scatter"
    return opcode


_WITH_OPERANDS = ("all-gather-start", "reduce-scatter-start", "collective-permute-start")


def _results(instruction: Instruction) -> list[Array]:
    arrays = [a for a in instruction.arrays if a.shape or len(instruction.arrays) == 1]
    if instruction.opcode in _WITH_OPERANDS:
        arrays = arrays[len(arrays) // 2 :]  # its operands come first
    return arrays or list(instruction.arrays[:1])


def _group(instruction: Instruction, num_chips: int) -> int:
    """The number of chips in a replica group, for each of XLA's three notations."""
    text = instruction.attributes
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text)
    if mesh:
        sizes = {a: int(n) for a, n in re.findall(r"'([^']+)'=(\d+)", mesh.group(1))}
        axes = re.findall(r"'([^']+)'", mesh.group(2))
        size = 1
        for axis in axes:
            size *= sizes[axis]
        return size
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    return len(listed.group(1).split(",")) if listed else num_chips


def _sent(kind: str, group: int) -> float:
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (group - 1) / group


def _role(
    kind: str, computation: str, array: Array, size: int, full: set[int], shard: set[int]
) -> str:
    if array.bytes <= _SCALARS and size not in full:
        return "scalars"
    if kind == "all-gather" and size in full:
        return "parameters"
    if kind in ("all-reduce", "reduce-scatter") and size in full | shard:
        return "gradients"
    if kind == "collective-permute" and size in shard:
        return "gradients" if "dot_general_body_rs" in computation else "parameters"
    return "activations"
