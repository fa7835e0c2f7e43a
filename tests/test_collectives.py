"""What a compiled program sends, read from its text; the lines are XLA's own, shortened."""

import pytest

from ddpm_jax.planning import collectives
from ddpm_jax.planning.collectives import Collective

TEXT = """
HloModule jit_step, is_scheduled=true

%all-reduce-scatter.16 (input_0: bf16[128,32], input_1: bf16[3,3,128,64]) -> (bf16[16,32], bf16[3,3,16,64]) {
  %input_0 = bf16[128,32]{1,0} parameter(0)
  %all-reduce.247 = (bf16[128,32]{1,0:T(8,128)(2,1)}, bf16[3,3,128,64]{3,2,1,0}) all-reduce(%input_0, %input_1), \
replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

ENTRY %main.10_spmd (param: f32[32,8]) -> f32[32,8] {
  %all-reduce.1 = s32[4]{0:T(128)} all-reduce(%x), replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, to_apply=%r
  %all-reduce-start.2 = f32[10]{0} all-reduce-start(%x), replica_groups={}, to_apply=%r
  %all-gather.43 = f32[1,1,64,64]{2,1,0,3:T(1,128)} all-gather(%b), replica_groups=[2,4]<=[8], dimensions={3}
  %all-gather.44 = f32[64]{0} all-gather(%b), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(1,0)) \
{'axis_1'}, dimensions={0}
  %all-gather-start = (f32[16]{0}, f32[64]{0}) all-gather-start(%b), replica_groups=[2,4]<=[8], dimensions={0}
  %reduce-scatter.3 = f32[16]{0} reduce-scatter(%b), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %collective-permute-start = (bf16[3,3]{1,0}, bf16[3,3]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %all-gather-done = f32[64]{0} all-gather-done(%all-gather-start)
  ROOT %t = f32[32,8]{1,0} fusion(%all-gather.44), kind=kCustom, calls=%all-reduce-scatter.16
}
"""


def test_every_exchange_is_counted_once_with_its_group_and_whole_size():
    found = {(each.kind, each.group): (each.count, each.size) for each in collectives.read(TEXT, 8)}
    assert found == {
        ("reduce-scatter", 8): (1, 2 * (128 * 32 + 9 * 128 * 64)),  # fused with its cut
        ("reduce-scatter", 4): (1, 4 * 16 * 4),
        ("all-reduce", 8): (2, 4 * 4 + 4 * 10),
        ("all-gather", 4): (3, 4 * (64 * 64 + 64 + 64)),
        ("collective-permute", 8): (1, 2 * 9),
    }


def test_the_largest_comes_first_and_no_exchange_is_found_where_there_is_none():
    sizes = [each.size for each in collectives.read(TEXT, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert collectives.read("ENTRY %main (x: f32[2]) -> f32[2] {\n  ROOT %x = f32[2]{0} parameter(0)\n}\n", 1) == []


@pytest.mark.parametrize(("kind", "passes"), [("all-gather", 1), ("reduce-scatter", 1), ("all-reduce", 2)])
def test_a_ring_of_n_sends_all_but_an_nth_of_the_whole_in_each_pass(kind, passes):
    assert Collective(kind=kind, group=4, count=1, size=400).sent() == passes * 300
    assert Collective(kind=kind, group=1, count=1, size=400).sent() == 0


def test_what_a_loop_sends_counts_as_often_as_it_is_taken():
    text = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %r = f32[8]{0} all-reduce(%p), replica_groups={{0,1}}, to_apply=%add
}

%body.7 (p: f32[8]) -> f32[8] {
  %g = f32[16]{0} all-gather(%p), replica_groups={{0,1}}, dimensions={0}
  ROOT %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%fused
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%p), condition=%cond, body=%body.7
  ROOT %g = f32[16]{0} all-gather(%w), replica_groups={{0,1}}, dimensions={0}
}
"""
    found = {each.kind: each.count for each in collectives.read(text, 2, trips=10)}
    assert found == {"all-gather": 11, "all-reduce": 10}
