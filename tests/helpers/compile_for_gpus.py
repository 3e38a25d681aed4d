"""Compiles every Triton kernel for real GPUs, which needs no GPU, and prints what each one uses.

A process of its own: in the tests' process Triton interprets. One line per kernel and target:
``name dtype flags sm_NN registers stack``.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hsae_lens.objective.kernels import triton_kernels as kernels
from hsae_lens.objective.kernels.launches import DEFAULT

ROWS = ("d_in", "stride", "width", "first_column")
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def use_of(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any], sm: int
) -> str:
    """On sm_90 as for a d_in that is a multiple of 16, on sm_80 as for any."""
    names = kernel.arg_names
    aligned = [n for n in types if types[n].startswith("*") or n in ROWS] if sm == 90 else []
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", shown).groups()  # type: ignore[union-attr]
    return f"sm_{sm} {registers} {stack}"


def main() -> None:
    warnings.simplefilter("ignore")
    launch = DEFAULT
    nested = {"COLUMNS": launch.columns, "RANKS": launch.ranks}
    nested_options = {"num_warps": launch.warps, "num_stages": launch.stages}
    segment = {"COLUMNS": launch.segment_columns, "ROWS": launch.rows}
    segment_options = {"num_warps": launch.segment_warps, "num_stages": launch.segment_stages}
    for dtype, sm in itertools.product(("fp32", "bf16"), (80, 90)):
        low = dict.fromkeys(("values", "W_dec", "b_dec", "target"), f"*{dtype}")
        wide = ("rank_weights", "token_weights", "errors", "residual", "d_values", "d_W_dec",
                "suffix", "suffixes")  # fmt: skip
        types = low | dict.fromkeys(wide, "*fp32") | {"indices": "*i64", "rank_slots": "*i64"}
        integers = ("block", "first_block", "K", "d_in", "stride", "n_slots")
        types |= dict.fromkeys(integers, "i32")
        for grad, store in ((False, False), (True, False), (True, True)):
            constants = nested | {"GRAD": grad, "STORE": store}
            use = use_of(kernels._nested_kernel, types, constants, nested_options, sm)
            print("nested", dtype, f"grad={grad},store={store}", use)
        types = {"out": "*fp32", "coefficients": f"*{dtype}", "rows": f"*{dtype}"}
        types |= dict.fromkeys(("entries", "offsets", "row_of_entry"), "*i64")
        types |= dict.fromkeys(("d_in", "stride", "width", "first_column"), "i32")
        use = use_of(kernels._segment_sum_kernel, types, segment, segment_options, sm)
        print("segment_sum", dtype, "", use)


if __name__ == "__main__":
    main()
