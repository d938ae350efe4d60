"""Triton compiles our kernels for a Hopper card, without one, and tests read the machine code.

Two things that cost a kernel most of its speed show in the machine code: registers that are spilled
to memory, and products of the matrix units each of which waits for the one before it.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="kernels are written in Triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from model.kernels import few_rows, ring_attention, twin_products

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FEW = 16
"""Bytes that may be spilled: one register pair or two, as releases of Triton differ."""
SIZES = "i32! i32! i32!"
SHARED = 99 << 10
"""Bytes of shared memory that an A10, L4 or RTX 4090 has for one program."""
RING = "*i64 *i64 *i64 i32 i32 i32 i32! i32! i32 i32 i32 fp32"


def machine_code(
    path: Path,
    kernel: Any,
    launch: dict[str, int],
    types: str,
    fixed: dict,
    shared: int = SHARED,
) -> str:
    """A kernel's use of registers, and its instructions.

    Args:
        types: those of its first arguments; ``!`` marks a multiple of 16, as pointers are.
        fixed: the others.
        shared: the most bytes of shared memory that it may need.
    """
    given = types.split()
    signature = dict(zip(kernel.arg_names, (each.rstrip("!") for each in given), strict=False))
    signature |= dict.fromkeys(fixed, "constexpr")
    assert list(signature) == kernel.arg_names
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, t in enumerate(given) if re.match(r"\*|.*!", t)
    }
    source = ASTSource(kernel, signature, fixed, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch)
    assert made.metadata.shared <= shared
    path.write_bytes(made.asm["cubin"])
    tools = ("cuobjdump", "-res-usage"), ("nvdisasm", "-c")
    return "".join(subprocess.check_output([TOOLS / t, o, path], text=True) for t, o in tools)


def spilled(code: str) -> int:
    """Bytes of memory that each thread keeps registers in."""
    (found,) = re.findall(r" STACK:(\d+)", code)
    return int(found)


def tiles(*shapes: tuple[int, ...]) -> str:
    return " ".join(f"tensordesc<bf16[{','.join(map(str, shape))}]>" for shape in shapes)


def twin(columns: int) -> dict[str, int]:
    return {"ROWS": twin_products.ROWS, "COLUMNS": columns, "DEPTH": 64, "GROUP": 8}


def test_scoring(tmp_path):
    """Both accumulators of a tile are multiplied at once."""
    x, w = (128, 64), (64, 64)
    cases = [
        (twin_products.gate_kernel, 8, f"{tiles(x, x, x, (128, 128))} {SIZES}", twin(128)),
        *(
            (
                twin_products.heads_kernel,
                4 if half <= 32 else 8,
                f"{tiles(x, w, w, (128, 64 // half, half))} *fp32 {SIZES} i32! i32! fp32",
                {"HALF": half, **twin(64)},
            )
            for half in (16, 32, 64)
        ),
    ]
    for kernel, warps, types, fixed in cases:
        launch = {"num_warps": warps, "num_stages": 3}
        code = machine_code(tmp_path / "kernel", kernel, launch, types, fixed, 227 << 10)
        assert spilled(code) <= FEW
        products = len(re.findall(r"\bHGMMA\.", code))
        assert len(re.findall(r"WARPGROUP\.DEPBAR", code)) <= products / 2


@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_generation(tmp_path, dtype):
    early = {"EARLY": True}
    for tokens in (1, 4):
        sizes = {"T": tokens, "ROWS": few_rows.ROWS, "COLUMNS": few_rows.columns_of(tokens)}
        sizes |= {"STAGES": few_rows.STAGES, **early}
        launch = {"num_warps": few_rows.WARPS}
        types = f"{dtype} {dtype} {dtype} {dtype} i32 i32! i32! fp32"
        for gated in (False, True):
            fixed = {"T": tokens, "GATED": gated, **sizes}
            code = machine_code(tmp_path / "kernel", few_rows._normed_product, launch, types, fixed)
            assert spilled(code) <= FEW
            # The first piece of the matrix is asked for before the kernel waits for another.
            assert code.index("LDG.") < code.index("ACQBULK") < code.rindex("LDG")
        types = f"{dtype} {dtype} {dtype} fp32 i32 i32! i32!"
        code = machine_code(tmp_path / "kernel", few_rows._added_product, launch, types, sizes)
        assert spilled(code) <= FEW
    for head, larger in ((64, 1), (128, ring_attention.LARGER)):
        lanes = ring_attention.lanes_of(head, larger, 2 if dtype == "*bf16" else 4)
        fixed = {"ALL": False, "HEAD": head, "WIDE": head, "LANES": lanes}
        fixed |= {"STAGES": ring_attention.STAGES, **early}
        launch = {"num_warps": larger * ring_attention.WARPS}
        types = f"{dtype} *fp32 {dtype} {dtype} {RING}"
        code = machine_code(tmp_path / "kernel", ring_attention._attend, launch, types, fixed)
        assert spilled(code) <= FEW
