"""Parsed HLO: loops are counted, and collectives are summed by role."""

import re

import jax
import jax.numpy as jnp
import pytest

from uvit_jax.aot.hlo import Module
from uvit_jax.aot.traffic import collectives, memory_bytes


def nested(x):
    def inner(x, _):
        return jnp.sin(x) @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=3)[0], None

    return jax.lax.scan(outer, x, length=7)[0] @ x


@pytest.fixture(scope="module")
def text():
    return jax.jit(nested).lower(jnp.ones((64, 64))).compile().as_text()


def test_nested_loops_are_counted_with_and_without_trip_count_annotations(text):
    bare = re.sub(r'"known_trip_count":\{[^}]*\},?', "", text)
    assert "known_trip_count" in text and "known_trip_count" not in bare
    for program in (text, bare):
        module = Module(program)
        products = sum(
            times
            for _, i, times in module.executed()
            if i.opcode in ("dot", "custom-call") and i.arrays[0].shape == (64, 64)
        )
        assert products == 7 * 3 + 1


def test_memory_traffic_grows_with_the_trips(text):
    least = (7 * 3 + 1) * 3 * 64 * 64 * 4  # each product reads two matrices and writes one
    assert least <= memory_bytes(Module(text)) < 20 * least


# As a TPU compiler writes: no trip count, a counter from 0 by 2 below 10, one collective spread
# over two fusions, groups in three notations. Four chips; the parameter has 64 × 16 numbers.
PROGRAM = """HloModule jit_step

%piece.1 (p: bf16[16,16]) -> bf16[64,16] {
  %p = bf16[16,16]{1,0} parameter(0)
  ROOT %ag.1 = bf16[64,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4]
}

%piece.2 (p: bf16[16,16]) -> bf16[64,16] {
  %p = bf16[16,16]{1,0} parameter(0)
  ROOT %ag.2 = bf16[64,16]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4]
}

%body (s: (u32[], bf16[16,16])) -> (u32[], bf16[16,16]) {
  %s = (u32[], bf16[16,16]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %w = bf16[16,16]{1,0} get-tuple-element(%s), index=1
  %start = bf16[64,16]{1,0} fusion(%w), kind=kCustom, calls=%piece.1
  %done = bf16[64,16]{1,0} fusion(%w), kind=kCustom, calls=%piece.2
  %sum = (bf16[64,16], f32[8,4,16]) all-reduce(%done, %s), replica_groups={{0,1,2,3}}
  %rs = ((bf16[64,16]), bf16[16,16]) reduce-scatter-start(%done), replica_groups={{0,1,2,3}}
  ROOT %t = (u32[], bf16[16,16]) tuple(%next, %w)
}

%condition (s: (u32[], bf16[16,16])) -> pred[] {
  %s = (u32[], bf16[16,16]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %ten = u32[] constant(10)
  ROOT %lt = pred[] compare(%i, %ten), direction=LT
}

ENTRY %main (w: bf16[16,16], x: f32[8,4000]) -> f32[32,4000] {
  %w = bf16[16,16]{1,0} parameter(0)
  %x = f32[8,4000]{1,0} parameter(1)
  %zero = u32[] constant(0)
  %t = (u32[], bf16[16,16]) tuple(%zero, %w)
  %loop = (u32[], bf16[16,16]) while(%t), condition=%condition, body=%body
  ROOT %batch = f32[32,4000] all-gather(%x), replica_groups=mesh['b'=4] {'b'}, ORIGIN
}
""".replace("ORIGIN", 'metadata={op_name="jit(step)/conv"}')


def test_collectives_have_roles_by_size():
    by_role = {(c.role, c.kind): c for c in collectives(Module(PROGRAM), 4, [(64 * 16, 16 * 16)])}
    assert len(by_role) == 5
    gathered = by_role["parameters", "all-gather"]
    assert (gathered.count, gathered.group) == (5, 4)  # one collective, five trips
    assert gathered.bytes == 5 * (64 * 16 * 2) * 3 // 4
    assert by_role["gradients", "all-reduce"].bytes == 5 * 2 * (64 * 16 * 2) * 3 // 4
    assert by_role["gradients", "reduce-scatter"].bytes == gathered.bytes
    assert by_role["scalars", "all-reduce"].count == 5
    batch = by_role[
        "activations", "all-gather"
    ]  # an all-gathered batch is not taken for parameters
    assert batch.bytes == 32 * 4000 * 4 * 3 // 4 and batch.origin == "jit(step)/conv"


def test_a_loop_with_a_computed_bound_raises():
    program = PROGRAM.replace("%ten = u32[] constant(10)", "%ten = u32[] custom-call(%s)")
    with pytest.raises(ValueError, match="trip count of the loop loop"):
        list(Module(program).executed())
