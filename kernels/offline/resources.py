"""What a compiled kernel takes of a multiprocessor, read from its binary and its assembly."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget


@dataclass(frozen=True)
class Architecture:
    """What to compile for, and how much shared memory one program may have there."""

    target: GPUTarget
    shared_limit: int


#: Shared memory is the opt-in maximum of a thread block (CUDA: compute capabilities; AMD: the LDS).
ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 * 1024),
    "sm_120": Architecture(GPUTarget("cuda", 120, 32), 99 * 1024),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 * 1024),
}

#: Tensor-core instructions, by what their names begin with in PTX and in AMD's assembly.
TENSOR_CORES = ("wgmma.mma_async", "mma.sync", "tcgen05.mma", "v_mfma")


@dataclass(frozen=True)
class Resources:
    """Registers a thread, local memory (bytes a thread), shared memory (bytes a program)."""

    registers: int
    local: int  # spilled registers and whatever else did not fit: what should be 0
    shared: int
    tensor_cores: dict[str, int]  # instructions by kind
    tensor_memory: int | None = None  # columns of Blackwell's tensor memory
    tma: int = 0  # instructions that move a block by TMA
    warp_specialized: bool = False
    torn_sums: int = 0  # additions that may leave other bits in other lanes: see `torn_sums`
    # Instructions that move global memory, by the bytes a thread moves; None in a report from before.
    loads: dict[int, int] | None = None
    stores: dict[int, int] | None = None

    def widest(self, moves: str) -> int:
        """The most bytes that one of the "loads" or "stores" moves; 0 if there are none, or not known."""
        return max(getattr(self, moves) or {0: 0})


def read(compiled: Any) -> Resources:
    """The resources of a Triton ``CompiledKernel``.

    Raises:
        RuntimeError: there is no ``cuobjdump`` to read a cubin with.
    """
    if "cubin" in compiled.asm:
        registers, local = _of_cubin(compiled.asm["cubin"])
        assembly = compiled.asm["ptx"]
    else:
        assembly = compiled.asm["amdgcn"]
        registers, local = of_amdgcn(assembly)
    return Resources(
        registers,
        local,
        compiled.metadata.shared,
        tensor_cores(assembly),
        getattr(compiled.metadata, "tmem_size", None),
        tma(assembly),
        # Triton's last form before LLVM; with and without specialized warps, the PTX looks alike.
        "ttg.warp_specialize(" in compiled.asm["ttgir"],
        torn_sums(compiled.asm["llir"]),
        *widths(assembly),
    )


def tensor_cores(assembly: str) -> dict[str, int]:
    """How many tensor-core instructions of each kind there are; kinds that are not there are left out."""
    counts = {kind: _count(kind, assembly) for kind in TENSOR_CORES}
    return {kind: count for kind, count in counts.items() if count}


def tma(assembly: str) -> int:
    """How many instructions move blocks between global and shared memory by TMA."""
    return _count("cp.async.bulk.tensor", assembly)


# LLVM instructions that pass a float on as it is, or with another sign.
_PASSES_ON = {"bitcast", "extractelement", "insertelement", "shufflevector", "freeze", "fneg"}
_OF_ANOTHER_LANE = re.compile(r"@llvm\.(nvvm\.shfl|amdgcn\.(\w+\.dpp|ds\.swizzle|ds\.bpermute|permlane))")


def torn_sums(llvm: str) -> int:
    """How many additions in LLVM's IR have a product on one side and another lane's number on the other.

    They may be contracted, and lanes that exchange their numbers to sum them would then differ in the last
    bit: see `common.device.product`. Whether they are is for LLVM and ptxas to decide, so this
    looks at what they are given.
    """
    return sum(map(_torn_sums, llvm.split("\ndefine ")[1:]))


def _torn_sums(function: str) -> int:
    made = dict(re.findall(r"^\s+(%[\w.]+) = (?:tail )?(.*?)(?:, !dbg.*)?$", function, re.MULTILINE))

    def sources(name: str) -> Iterator[str]:
        instruction = made.get(name, "")
        if instruction.split(" ")[0] not in _PASSES_ON:
            yield instruction
            return
        for operand in re.findall(r"%[\w.]+", instruction):
            yield from sources(operand)

    def is_torn(instruction: str) -> bool:
        operands = re.findall(r"%[\w.]+", instruction)
        sides = [list(sources(operand)) for operand in operands]
        products = [any(one.startswith("fmul") for one in side) for side in sides]
        sent = [any(_OF_ANOTHER_LANE.search(one) for one in side) for side in sides]
        return len(sides) == 2 and any(a and b for a, b in zip(products, reversed(sent)))

    return sum(is_torn(one) for one in made.values() if one.startswith(("fadd", "fsub")))


#: `ld.global.v4.b32`, `st.relaxed.gpu.global.b16`, ...: what is moved is at the end of the name.
_PTX_MOVE = re.compile(r"(ld|st)(?:\.[\w:]+)*?\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[busf](\d+)\s")
#: `cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10`: global to shared memory.
_PTX_COPY = re.compile(r"cp\.async\.c[ag]\.shared\S*\.global\S*\s+\[[^]]*\],\s*\[[^]]*\],\s*(\w+)")
#: `global_load_dwordx4`, `buffer_store_short`, `global_load_lds_dword`, ...
_AMD_MOVE = re.compile(
    r"^\s*(?:global|buffer|flat)_(load|store)_(?:lds_)?([us]?byte|[us]?short|dword(?:x(\d))?)(?![a-z])",
    re.MULTILINE,
)


def widths(assembly: str) -> tuple[dict[int, int], dict[int, int]]:
    """How many loads and stores of global memory there are, by the bytes that each moves for a thread.

    Those by TMA and atomics are not counted, nor AMD's loads of scalars, which are its kernels' arguments.
    """
    found: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for direction, width in _moves(re.sub(r"//.*", "", assembly)):
        found[direction][width] += 1
    loads, stores = (dict(sorted(each.items(), reverse=True)) for each in found.values())
    return loads, stores


def _moves(assembly: str) -> Iterator[tuple[str, int]]:
    for kind, count, bits in _PTX_MOVE.findall(assembly):
        yield "load" if kind == "ld" else "store", int(count or 1) * int(bits) // 8
    for width in _PTX_COPY.findall(assembly):
        yield "load", int(width, 0)
    for kind, what, dwords in _AMD_MOVE.findall(assembly):
        yield kind, 1 if "byte" in what else 2 if "short" in what else 4 * int(dwords or 1)


def _count(instruction: str, assembly: str) -> int:
    # At a line's start or after a predicate: not inside a longer name, a comment or a directive.
    return len(re.findall(rf"^\s*(?:@\S+\s+)?{re.escape(instruction)}[._]", assembly, re.MULTILINE))


def of_amdgcn(assembly: str) -> tuple[int, int]:
    """Registers (vector and accumulation) and local memory, from the metadata of AMD's assembly.

    Scalar registers spill into lanes of vector ones, which takes no memory.
    """
    fields = {k: int(v) for k, v in re.findall(r"^\s*\.(\w+): +(\d+)$", assembly, re.MULTILINE)}
    spilled = 4 * fields.get("vgpr_spill_count", 0)
    return fields["vgpr_count"], max(fields["private_segment_fixed_size"], spilled)


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump(), "--dump-resource-usage", file.name]
        return of_resource_usage(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def of_resource_usage(text: str) -> tuple[int, int]:
    """Registers and local memory from what ``cuobjdump --dump-resource-usage`` printed."""
    fields = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return fields["REG"], fields["STACK"] + fields["LOCAL"]  # spills live on the stack


@cache
def cuobjdump() -> str:
    """Triton's own ``cuobjdump`` (or ``TRITON_CUOBJDUMP_PATH``), else the one on ``PATH``.

    Raises:
        RuntimeError: there is none.
    """
    try:
        return knobs.nvidia.cuobjdump.path
    except RuntimeError:  # some distributions package Triton without NVIDIA's tools
        found = shutil.which("cuobjdump")
    if found is None:
        raise RuntimeError("cuobjdump: not in Triton's package nor on PATH; set TRITON_CUOBJDUMP_PATH")
    return found
