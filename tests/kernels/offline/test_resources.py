"""What a kernel takes, read from its assembly and its binary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmlp.kernels.offline import resources

PTX = """
.target sm_90a
// mma.sync is not used here
\t@%p1 bra $L1;
\twgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 1;
\twgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%r1}, %rd1, %rd2, 1, 1, 1, 0, 1;
\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2};
\t@%p2 tcgen05.mma.cta_group::1.kind::f16 [%r1 + 0], %rd1, %rd2, %r3, %p4;
"""


def test_tensor_core_instructions_are_counted_by_kind() -> None:
    assert resources.tensor_cores(PTX) == {"wgmma.mma_async": 2, "mma.sync": 1, "tcgen05.mma": 1}
    assert resources.tensor_cores("\tv_mfma_f32_32x32x8_bf16 a[0:15], v[0:1]\n\tv_add_f32 v0") == {
        "v_mfma": 1
    }
    assert resources.tensor_cores("\tfma.rn.f32 %f1, %f2, %f3;") == {}


def test_tma_instructions_are_counted() -> None:
    text = """
// cp.async.bulk.tensor is not used here
\t@%p9 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd4, {%r2}], [%r5];
\tcp.async.bulk.commit_group;
\t@%p2 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r5, %r6}], [%r7];
"""
    assert resources.tma(text) == 2
    assert resources.tma(PTX) == 0


LLVM = """
define void @a(float %x, i32 %i) {{
  %p = fmul float %x, %x, !dbg !1
  %v = bitcast float %p to i32
  %s = tail call i32 @llvm.{exchange}, !dbg !1
  %w = bitcast i32 %s to float, !dbg !2
  %sum = {sum}, !dbg !3
}}
"""


@pytest.mark.parametrize(
    ("total", "torn"),
    [
        ("fadd float %p, %w", 1),
        ("fadd float %w, %p", 1),
        ("fsub contract float %w, %p", 1),
        ("fadd float %w, %w", 0),  # what is exchanged is rounded
        ("fadd float %p, %p", 0),
        ("fadd float %p, 1.000000e+00", 0),
        ("call float @llvm.fma.f32(float %p, float %w, float %w)", 0),
    ],
)
def test_torn_sums_in_a_text(total: str, torn: int) -> None:
    for exchange in ("nvvm.shfl.sync.bfly.i32(i32 -1, i32 %v)", "amdgcn.update.dpp.i32(i32 poison, i32 %v)"):
        assert resources.torn_sums(LLVM.format(exchange=exchange, sum=total)) == torn
    another = LLVM.format(exchange="umin.i32(i32 %v, i32 %i)", sum=total)
    assert resources.torn_sums(another) == 0


def test_loads_and_stores_are_counted_by_their_bytes() -> None:
    text = """
// ld.global.v4.b32 is not used here
\tld.param.b64 \t%rd1, [kernel_param_0];
\t@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
\t@!%p1 ld.global.L1::evict_first.L2::cache_hint.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ], %rd9;
\tld.global.v8.b32 { %r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8 }, [ %rd1 + 0 ];
\tld.volatile.global.b64 %rd2, [%rd1]; ld.relaxed.gpu.global.u16 %rs1, [%rd1];
\t{ .reg .pred p; @p ld.global.nc.b8 %r1, [%rd1]; }
\tld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];
\t@%p2 st.global.v2.b64 [ %rd1 + 0 ], { %rd2, %rd3 };
\tst.global.b16 [%rd1+2],
\t\t%rs1;
\tcp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
\t@%p3 cp.async.ca.shared.global.L2::128B [ %r1 + 0 ], [ %rd1 + 0 ], 4;
\tatom.global.acq_rel.gpu.add.u32 %r1, [%rd1], 1;
"""
    assert resources.widths(text) == ({32: 1, 16: 3, 8: 1, 4: 1, 2: 1, 1: 1}, {16: 1, 2: 1})
    amd = """
\ts_load_dwordx4 s[0:3], s[4:5], 0x0
\tglobal_load_dwordx4 v[0:3], v4, s[0:1]
\tbuffer_load_dwordx2 v[0:1], v2, s[0:3], 0 offen
\tglobal_load_ushort v0, v1, s[0:1] ; global_load_dword
\tglobal_load_short_d16_hi v0, v1, s[0:1]
\tglobal_store_byte v0, v1, s[0:1]
\tbuffer_store_dword v0, v1, s[0:3], 0 offen
\tglobal_load_lds_dwordx3 v[0:1], off
"""
    assert resources.widths(amd) == ({16: 1, 12: 1, 8: 1, 2: 2}, {4: 1, 1: 1})


def test_usage_of_a_cubin() -> None:
    text = (
        " Function k:\n  REG:255 STACK:136 SHARED:0 LOCAL:16 CONSTANT[0]:984 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    )
    assert resources.of_resource_usage(text) == (255, 152)


def test_usage_of_amds_assembly() -> None:
    text = """
    .private_segment_fixed_size: {local}
    .sgpr_count:     30
    .sgpr_spill_count: 3
    .vgpr_count:     254
    .vgpr_spill_count: {spilled}
"""
    assert resources.of_amdgcn(text.format(local=0, spilled=0)) == (254, 0)
    assert resources.of_amdgcn(text.format(local=64, spilled=5)) == (254, 64)
    assert resources.of_amdgcn(text.format(local=0, spilled=5)) == (254, 20)


@pytest.fixture
def no_cuobjdump(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Triton comes without NVIDIA's tools; the directory given is all of PATH."""

    class Nothing:
        @property
        def cuobjdump(self) -> None:
            raise RuntimeError("Cannot find cuobjdump")

    class Knobs:
        nvidia = Nothing()

    monkeypatch.setattr(resources, "knobs", Knobs())
    monkeypatch.setenv("PATH", str(tmp_path))
    resources.cuobjdump.cache_clear()
    yield tmp_path
    resources.cuobjdump.cache_clear()


def test_cuobjdump_of_the_path(no_cuobjdump: Path) -> None:
    tool = no_cuobjdump / "cuobjdump"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert resources.cuobjdump() == str(tool)


@pytest.mark.usefixtures("no_cuobjdump")
def test_no_cuobjdump_is_said() -> None:
    with pytest.raises(RuntimeError, match="TRITON_CUOBJDUMP_PATH"):
        resources.cuobjdump()
