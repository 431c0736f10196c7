"""Parses the text of a compiled HLO module: its instructions, and how often each of them runs.

    module = Module(compiled.as_text())
    for computation, instruction, times in module.executed(): ...

A scan is a `while` whose body appears once, so counts in it are multiplied by its trip count. XLA
annotates that count for CPUs and GPUs (`known_trip_count`), but not for TPUs; there the loop's
counter is evaluated, whose start, step and bound are constants.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d\w+)?)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|called_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_EITHER = re.compile(r"\b(?:true_computation|false_computation)=%([\w.\-]+)")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2}
_MAX_TRIPS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of an instruction's result: element type, shape, and memory space (0 is main memory;
    others are a TPU's on-chip memory)."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes, without the padding of a tiled layout."""
        bits = _BITS.get(self.dtype) or int(re.sub(r"^[a-z]+(\d+).*$", r"\1", self.dtype) or 0)
        return self.size * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """`name = arrays opcode(operands), attributes`, with a tuple's arrays flattened."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    inside: str
    attributes: str

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Computations by the attribute that names them: `calls`, `body`, `condition`, …"""
        return dict(_CALLED.findall(self.attributes))

    @functools.cached_property
    def op_name(self) -> str:
        """The path of the JAX operation that it was compiled from, or empty."""
        name = re.search(r'op_name="([^"]*)"', self.attributes)
        return name[1] if name else ""


class Module:
    """An optimised HLO module.

    Attributes:
      computations: by name; each maps its instructions' names to them, in order.
      roots: the root instruction of each computation.
      entry: the name of the entry computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.roots: dict[str, Instruction] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        name = ""
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header:
                name = header.group(2)
                current = self.computations.setdefault(name, {})
                if header.group(1):
                    self.entry = name
                continue
            parts = _INSTRUCTION.match(line)
            if not parts:
                continue
            root, own, shape, opcode, rest = parts.groups()
            inside, attributes = _split(rest)
            current[own] = Instruction(
                own, opcode, _arrays(shape), tuple(_NAME.findall(inside)), inside, attributes
            )
            if root:
                self.roots[name] = current[own]

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, number of runs) of all instructions that run.

        Includes the instructions inside fusions, but not those of reduction functions. Every branch
        of a conditional counts once.
        """
        for name, times in self._times.items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    @functools.cached_property
    def fused(self) -> frozenset[str]:
        """The computations inside fusions, whose intermediate values never reach main memory."""
        return frozenset(
            i.called["calls"]
            for computation in self.computations.values()
            for i in computation.values()
            if i.opcode == "fusion" and "calls" in i.called
        )

    @functools.cached_property
    def _times(self) -> dict[str, int]:
        times: dict[str, int] = {}

        def visit(name: str, count: int) -> None:
            times[name] = times.get(name, 0) + count
            for instruction in self.computations[name].values():
                called = instruction.called
                if instruction.opcode == "while":
                    visit(called["body"], count * self.trip_count(name, instruction))
                    continue
                inner = [called[key] for key in ("calls", "called_computation") if key in called]
                if instruction.opcode == "call":
                    inner += [called["to_apply"]]
                for group in _BRANCHES.findall(instruction.attributes):
                    inner += _NAME.findall(group)
                inner += _EITHER.findall(instruction.attributes)
                for child in inner:
                    visit(child, count)

        visit(self.entry, 1)
        return times

    def trip_count(self, computation: str, loop: Instruction) -> int:
        """How often the `while` instruction `loop` of `computation` runs its body.

        Raises:
          ValueError: if its counter does not follow from constants.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if known:
            return int(known.group(1))
        condition, body = loop.called["condition"], loop.called["body"]
        index = self._counter(condition)
        start = self.computations[computation][loop.operands[0]]
        try:
            value = self._value(computation, start.operands[index], {})
        except (_Unknown, IndexError):
            value = 0
        for count in range(_MAX_TRIPS):
            try:
                if not self._value(condition, self.roots[condition].name, {index: value}):
                    return count
                value = self._value(body, self.roots[body].operands[index], {index: value})
            except _Unknown as error:
                raise ValueError(f"the trip count of the loop {loop.name} is unknown") from error
        raise ValueError(f"the loop {loop.name} runs more than {_MAX_TRIPS} times")

    def _counter(self, condition: str) -> int:
        """The index of the element of the loop's state that its condition tests."""
        indices = {
            int(re.search(r"index=(\d+)", i.attributes).group(1))
            for i in self.computations[condition].values()
            if i.opcode == "get-tuple-element"
        }
        counters = indices if len(indices) == 1 else self._read(condition)
        if len(counters) != 1:
            raise ValueError(f"the loop condition {condition} tests {len(counters)} numbers")
        return counters.pop()

    def _read(self, computation: str) -> set[int]:
        """The indices of the state's elements on which a condition's root depends."""
        indices, instructions = set(), self.computations[computation]
        pending = [self.roots[computation].name]
        while pending:
            instruction = instructions[pending.pop()]
            if instruction.opcode == "get-tuple-element":
                indices.add(int(re.search(r"index=(\d+)", instruction.attributes).group(1)))
            else:
                pending += instruction.operands
        return indices

    def _value(self, computation: str, name: str, state: dict[int, int]) -> int:
        """The value of a scalar, given some elements of the computation's tuple parameter."""
        return self._scalar(computation, name, state, ())

    def _scalar(
        self, computation: str, name: str, state: dict[int, int], arguments: Sequence[int]
    ) -> int:
        instruction = self.computations[computation][name]
        opcode = instruction.opcode
        if opcode == "constant":
            text = instruction.inside.strip()
            if not re.fullmatch(r"-?\d+|true|false", text):
                raise _Unknown
            return {"true": 1, "false": 0}.get(text) if text.isalpha() else int(text)
        if opcode == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", instruction.attributes).group(1))
            source = self.computations[computation][instruction.operands[0]]
            if source.opcode == "parameter" and index in state:
                return state[index]
            raise _Unknown
        if opcode == "parameter":
            index = int(instruction.inside)
            if index < len(arguments) and arguments[index] is not None:
                return arguments[index]
            raise _Unknown
        if opcode not in (*_IDENTITY, *_BINARY, "compare", "fusion"):
            raise _Unknown

        values = []
        for operand in instruction.operands:
            try:
                values.append(self._scalar(computation, operand, state, arguments))
            except _Unknown:
                if opcode != "fusion":
                    raise
                values.append(None)
        if opcode == "fusion":
            called = instruction.called["calls"]
            return self._scalar(called, self.roots[called].name, {}, values)
        if opcode in _IDENTITY:
            return values[0]
        if opcode == "compare":
            direction = re.search(r"direction=(\w+)", instruction.attributes).group(1)
            return int(_COMPARE[direction](*values))
        return _BINARY[opcode](*values)


class _Unknown(Exception):
    """The value depends on the program's inputs."""


_IDENTITY = ("copy", "bitcast", "convert", "reshape", "broadcast")
_BINARY = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
}
_COMPARE = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "NE": lambda a, b: a != b,
    "EQ": lambda a, b: a == b,
}


def _arrays(text: str) -> tuple[Array, ...]:
    arrays = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        numbers = tuple(int(n) for n in shape.split(",") if n)
        arrays.append(Array(dtype, numbers, int(space.group(1)) if space else 0))
    return tuple(arrays)


def _split(rest: str) -> tuple[str, str]:
    """The text before and after the parenthesis that closes the operands."""
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return rest[:i], rest[i + 1 :]
    return rest, ""
