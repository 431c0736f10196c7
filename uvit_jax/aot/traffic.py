"""What a compiled program moves: between chips by collectives, and in and out of main memory.

Bytes are those of one chip and one run of the program, loops counted. A collective's bytes are what
a chip has to send at least, with P chips taking part: all-gather and reduce-scatter (P - 1)/P of
the whole array, all-reduce twice that, all-to-all (P - 1)/P of a chip's part, and a permutation all
of it.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

from uvit_jax.aot.hlo import Array, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
ROLES = ("parameters", "gradients", "activations", "scalars")
_SCALARS = 4096  # bytes; what is smaller is a loss, a norm, a count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of the program's text.

    Attributes:
      kind: one of `KINDS`. role: what it moves, one of `ROLES`.
      count: times it runs. bytes: that a chip sends, in all of them.
      group: chips that take part. array: of the largest array that comes out, such as
        `bf16[16,2048]`. origin: the operation of the source that it was made for.
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

    Args:
      num_chips: of the whole program. parameters: (elements, elements of a chip's part) of every
        parameter as the program uses it: of a stack of layers, one layer's.

    What is moved is told by size. An all-gather that makes as many elements as a parameter has
    gathers it; a sum of as many is its gradient; a permutation of a part of one belongs to a
    product that XLA has merged with its gather (or, in a loop that it names so, with its scatter).
    Nothing else is taken for a parameter, so a batch that is gathered cannot hide there.
    """
    whole, part = (set(sizes) for sizes in zip(*parameters, strict=True))
    found, seen = [], set()
    for computation, instruction, times in module.executed():
        kind = _kind(module, computation, instruction)
        if kind is None:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if computation in module.fused and channel:
            # A TPU spreads one collective over several fusions: its start, its steps and its end.
            if channel.group(1) in seen:
                continue
            seen.add(channel.group(1))
        arrays = _results(instruction)
        group = _group(instruction, num_chips)
        scattered = instruction.opcode.startswith("reduce-scatter")
        by_role: dict[str, list[Array]] = collections.defaultdict(list)
        for array in arrays:
            size = array.size * group if scattered else array.size
            by_role[_role(kind, computation, array, size, whole, part)].append(array)
        for role, members in by_role.items():
            total = sum(a.bytes for a in members) * (group if scattered else 1)
            largest = max(members, key=lambda a: a.bytes)
            found.append(
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
    return sorted(found, key=lambda c: -c.bytes)


def memory_bytes(module: Module) -> int:
    """Bytes that a chip reads from and writes to its main memory in one run.

    Every instruction reads its operands and writes its results once; of an array of which only a
    slice is read or written, the slice. What the compiler keeps on the chip itself is left out.
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
    here = module.computations[computation]
    results = _main(instruction.arrays)
    operands = [here[name] for name in instruction.operands if name in here]
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
        # On TPUs, a reduce-scatter is a fusion of an all-reduce and a slice.
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
    """How many chips take part together. XLA writes the groups in three ways."""
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
    kind: str, computation: str, array: Array, size: int, whole: set[int], part: set[int]
) -> str:
    if array.bytes <= _SCALARS and size not in whole:
        return "scalars"
    if kind == "all-gather" and size in whole:
        return "parameters"
    if kind in ("all-reduce", "reduce-scatter") and size in whole | part:
        return "gradients"
    if kind == "collective-permute" and size in part:
        return "gradients" if "dot_general_body_rs" in computation else "parameters"
    return "activations"
