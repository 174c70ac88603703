"""Bytes from and to the memory: each operand and result once, of a slice the slice."""

import jax
import jax.numpy as jnp

from lm_jax.plan import hlo
from lm_jax.plan.traffic import traffic

MB = 2**20


def of(function, *shapes, **options):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traffic(hlo.parse(jax.jit(function, **options).lower(*arrays).compile().as_text()))


def test_a_pass_over_an_array_reads_it_and_writes_the_result():
    assert of(lambda x: jnp.tanh(x) + 1, (512, 512)) == 2 * MB
    assert of(lambda x, y: x * y, (512, 512), (512, 512)) == 3 * MB


def test_a_loop_over_parts_of_an_array_moves_all_of_it_and_not_as_often_as_there_are_parts():
    def run(x):
        return jax.lax.scan(lambda c, row: (c, jnp.tanh(row)), 0.0, x)[1]

    moved = of(run, (16, 512, 128))  # 4 MB in, 4 MB out
    assert 8 * MB <= moved < 13 * MB  # the CPU's compiler clears the result first


FUSION = """HloModule m

%view (v.0: f32[8,1024]) -> f32[8,1024] {
  %v.0 = f32[8,1024]{1,0} parameter(0)
  ROOT %v.1 = f32[8,1024]{1,0} copy(%v.0)
}

%slice (p.0: f32[8,1024], p.1: s32[]) -> f32[1024] {
  %p.0 = f32[8,1024]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %c.0 = s32[] constant(0)
  %same = f32[8,1024]{1,0} fusion(%p.0), output_to_operand_aliasing={{}: (0, {})}, calls=%view
  %row = f32[1,1024]{1,0} dynamic-slice(%same, %p.1, %c.0), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%row)
}

%update (q.0: f32[8,1024], q.1: f32[1,1024], q.2: s32[]) -> f32[8,1024] {
  %q.0 = f32[8,1024]{1,0} parameter(0)
  %q.1 = f32[1,1024]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %c.1 = s32[] constant(0)
  ROOT %new = f32[8,1024]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %c.1)
}

ENTRY %main (x: f32[8,1024], i: s32[]) -> f32[8,1024] {
  %x = f32[8,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %part = f32[1024]{0:T(1024)PLACE} fusion(%x, %i), kind=kLoop, calls=%slice
  %rows = f32[1,1024]{1,0:T(1,128)PLACE} bitcast(%part)
  ROOT %out = f32[8,1024]{1,0} fusion(%x, %rows, %i), kind=kLoop, calls=%update
}
"""


def test_a_fusion_reads_the_slice_that_it_takes_and_writes_the_update_that_it_makes():
    row, index = 4 * 1024, 4
    outside, on_chip = FUSION.replace("PLACE", ""), FUSION.replace("PLACE", "S(1)")
    assert traffic(hlo.parse(outside)) == (row + row + index) + (row + row + index)
    # What stays in the chip's own memory is not read from the other, nor written to it.
    assert traffic(hlo.parse(on_chip)) == (row + index) + (row + index)
