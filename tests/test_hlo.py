"""Test tools/hlo.py, which finds memory traffic, collectives and host transfers in a program."""

import pytest

from tools import hlo

MODULE = hlo.parse(
    """HloModule jit_train, is_scheduled=true, entry_computation_layout={(f32[64]{0})->f32[64]{0}}

%fused_computation (param_0.1: u8[1000,3072], param_1.1: s32[8]) -> f32[8,3072] {
  %param_0.1 = u8[1000,3072]{1,0:T(8,128)(4,1)} parameter(0)
  %param_1.1 = s32[8]{0:T(128)} parameter(1), metadata={op_name="jit(train)"}
  %gather.1 = u8[8,3072]{1,0:T(8,128)(4,1)} gather(%param_0.1, %param_1.1), offset_dims={1}
  ROOT %convert.1 = f32[8,3072]{1,0:T(8,128)} convert(%gather.1)
}

%inner (arg: (f32[8])) -> (f32[8]) {
  %arg = (f32[8]{0:T(128)}) parameter(0)
  %gte.9 = f32[8]{0:T(128)} get-tuple-element(%arg), index=0
  %add.9 = f32[8]{0:T(128)} add(%gte.9, %gte.9)
  ROOT %tuple.9 = (f32[8]{0:T(128)}) tuple(%add.9)
}

%step (state: (f32[64,10], u8[1000,3072], s32[8])) -> (f32[64,10], u8[1000,3072], s32[8]) {
  %state = (f32[64,10]{1,0:T(8,128)}, u8[1000,3072]{1,0}, s32[8]{0:T(128)S(1)}) parameter(0)
  %weights = f32[64,10]{1,0:T(8,128)} get-tuple-element(%state), index=0
  %images = u8[1000,3072]{1,0:T(8,128)(4,1)} get-tuple-element(%state), index=1
  %indices = s32[8]{0:T(128)S(1)} get-tuple-element(%state), index=2
  %batch = f32[8,3072]{1,0:T(8,128)S(1)} fusion(%images, %indices), kind=kLoop, \
calls=%fused_computation
  %copy-start.1 = (f32[64,10]{1,0:T(8,128)S(1)}, f32[64,10]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%weights)
  %copy-done.1 = f32[64,10]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[64,10]{1,0:T(8,128)}), f32[8,10]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) \
slice-start(%weights), slice={[0:8], [0:10]}
  %slice-done.1 = f32[8,10]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)
  %whole = f32[8,10]{1,0:T(8,128)S(1)} custom-call(%slice-done.1), \
custom_call_target="ConcatBitcast"
  %count = u32[1]{0:T(128)S(6)} get-tuple-element(%state), index=2
  %next = u32[1]{0:T(128)S(6)} add(%count, %count)
  %loop = (f32[8]{0:T(128)}) while(%tuple.1), condition=%condition, body=%inner, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %tuple.2 = (f32[64,10], u8[1000,3072], s32[8]) tuple(%copy-done.1, %images, %indices)
}

ENTRY %main (param: f32[64]) -> f32[64] {
  %param = f32[64]{0:T(128)} parameter(0), metadata={op_name="all-reduce(x)"}
  %all-reduce.1 = (f32[64]{0:T(128)S(1)}, /*index=1*/bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)}) \
all-reduce(%param, %b), channel_id=1
  %all-gather-start = (f32[8]{0}, f32[32]{0}) all-gather-start(%c), channel_id=2
  %all-gather-done = f32[32]{0} all-gather-done(%all-gather-start)
  %gte = f32[64]{0} get-tuple-element(%all-reduce.1), index=0
  %while.1 = (f32[8]{0:T(128)}) while(%tuple.0), condition=%condition, body=%inner
  %while.2 = (f32[64,10], u8[1000,3072], s32[8]) while(%tuple.0), condition=%c.2, body=%step
  %call.2 = f32[8]{0} custom-call(%c), custom_call_target="xla_python_cpu_callback"
  %infeed = (f32[8]{0}, token[]) infeed(%token)
  %send-done = token[] send-done(%send)
  ROOT %send = (f32[8]{0}, u32[], token[]) send(%c, %token), channel_id=3
}
"""
)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[64]{0:T(128)}", [(512, False)]),
        (
            "(bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)}, pred[])",
            [(9 * 64 * 128 * 2, True), (1, False)],
        ),
        ("f32[10,100]{0,1:T(8,128)}", [(104 * 128 * 4, False)]),
        ("s32[5,7]{1,0}", [(140, False)]),
        ("(f32[2]{0}, token[], u32[]{:S(2)})", [(8, False), (4, True)]),
    ],
)
def test_size_of_arrays_includes_their_tiles(shape: str, expected: list) -> None:
    assert hlo.arrays(shape) == expected


def test_steps_body_is_the_largest_loop() -> None:
    assert hlo.steps_body(MODULE) is MODULE.computations["step"]
    with pytest.raises(ValueError, match="no loop"):
        hlo.steps_body(
            MODULE._replace(
                entry=MODULE.computations["step"] | {"loop": hlo.Instruction("add", "", [], "")}
            )
        )


def test_traffic() -> None:
    """Compare the memory traffic of the computation `step` with a sum over its operations.

    The fusion reads 8 rows of the images. The weights are copied once, and a slice reads 8 rows of
    the weights. The inner loop runs 5 times. Each time, the addition reads two arrays of 512 bytes
    and writes one. Traffic of on-chip memory counts only in `total`. The custom call moves nothing,
    because ConcatBitcast only joins adjacent slices.
    """
    batch, weights, indices, part, scalar = 8 * 3072, 64 * 128 * 4, 512, 8 * 128 * 4, 512
    moved = hlo.traffic(MODULE, hlo.steps_body(MODULE))
    assert moved.hbm == batch + weights + part + 5 * 3 * 512
    semaphore = 4
    assert moved.total - moved.hbm == (
        4 * batch + indices + weights + part + semaphore + 3 * scalar
    )


def test_loops_of_unknown_length() -> None:
    assert hlo.unknown_loops(hlo.steps_body(MODULE)) == []
    assert hlo.unknown_loops(MODULE.entry) == ["while.1", "while.2"]


def test_collectives_and_host_transfers() -> None:
    kinds, sizes = hlo.collectives(MODULE)
    assert kinds == {"all-reduce": 1, "all-gather": 1}
    assert sizes == [512 + 9 * 64 * 128 * 2, 40 * 4]
    assert hlo.host_transfers(MODULE) == ["custom-call", "infeed", "send"]
