"""Every implementation against the float64 reference: outputs and each gradient, by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hsae_lens.objective import kernels
from hsae_lens.objective.kernels import (
    IMPLEMENTATIONS,
    NestedProblem,
    reference,
    trial_problems,
    triton,
)
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.kernels.probe import TOLERANCE, relative_error
from hsae_lens.objective.kernels.trial_problems import KINDS, SHAPES, trial_problem

CPU = torch.device("cpu")
# Triton's kernels run on a GPU where there is one, else in its interpreter (conftest.py).
DEVICE = {name: torch.device("cpu") for name in IMPLEMENTATIONS}
if torch.cuda.is_available():
    DEVICE["triton"] = torch.device("cuda")
RUNS = [
    (name, dtype)
    for name, implementation in IMPLEMENTATIONS.items()
    for dtype in TOLERANCE
    if implementation.refuses(DEVICE[name], dtype) is None
]
# Triton's interpreter is slow: every kind of code on small shapes, plain ones on all.
CASES = [
    (*run, shape, kind)
    for run in RUNS
    for shape in SHAPES
    for kind in KINDS
    if run[0] != "triton" or kind == "plain" or shape in ("one token", "K = d_sae")
]


def problem(shape: str, kind: str = "plain", weighted_tokens: bool = False) -> NestedProblem:
    return trial_problem(SHAPES[shape], kind, weighted_tokens)


def cast(p: NestedProblem, dtype: torch.dtype, on: str = "reference") -> NestedProblem:
    """The problem in a dtype, where the implementation ``on`` runs."""
    return trial_problems.cast(p, dtype, DEVICE[on])


def assert_close(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    error = relative_error(got, want)
    assert error <= tolerance, f"{name}: relative error {error:.2e} > {tolerance:.0e}"


@pytest.mark.parametrize(("name", "dtype", "shape", "kind"), CASES, ids=str)
def test_nested_equals_reference(name: str, dtype: torch.dtype, shape: str, kind: str) -> None:
    # The reference sees the rounded inputs: what is compared is the arithmetic.
    rounded = cast(problem(shape, kind, weighted_tokens=shape == "odd"), dtype, name)
    want = reference.nested(cast(rounded, torch.float64), True)
    got = IMPLEMENTATIONS[name].nested(rounded, True)
    for field in got._fields:
        if kind == "all negative" and field == "d_W_dec":  # every value is zero, so is this
            assert not got.d_W_dec.any()
            continue
        assert_close(field, getattr(got, field), getattr(want, field), TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_encoder_grad_equals_reference(name: str, dtype: torch.dtype, shape: str) -> None:
    p = cast(problem(shape), dtype, name)
    d_sae, exact = p.W_dec.shape[0], cast(p, torch.float64)
    want = reference.encoder_grad(exact.values, exact.indices, exact.target, d_sae)
    got = IMPLEMENTATIONS[name].encoder_grad(p.values, p.indices, p.target, d_sae)
    assert got.is_contiguous()
    assert_close("d_W_enc", got, want, TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_without_gradients_the_outputs_are_the_same(name: str, dtype: torch.dtype) -> None:
    p = cast(problem("odd"), dtype, name)
    with_grad = IMPLEMENTATIONS[name].nested(p, True)
    without = IMPLEMENTATIONS[name].nested(p, False)
    assert torch.equal(without.squared_errors, with_grad.squared_errors)
    assert torch.equal(without.residual, with_grad.residual)
    assert without.d_values is without.d_W_dec is without.suffix is None


@pytest.mark.parametrize(
    ("name", "dtype"),
    [run for run in RUNS if run[0] != "reference"],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_same_input_same_bits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSAE_DETERMINISTIC", "1")
    p = cast(problem("crowded latents"), dtype, name)
    runs = [IMPLEMENTATIONS[name].nested(p, True) for _ in range(3)]
    for field in runs[0]._fields:
        assert all(torch.equal(getattr(runs[0], field), getattr(r, field)) for r in runs[1:]), field


@pytest.mark.parametrize("shape", ["K = d_sae", "crowded latents"])
def test_triton_sorts_instead_of_adding_atomically_when_asked(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := IMPLEMENTATIONS["triton"].refuses(DEVICE["triton"], torch.float32):
        pytest.skip(reason)
    from hsae_lens.objective.kernels import triton_kernels

    p = cast(problem(shape), torch.float32, "triton")
    p = p._replace(budgets=list(range(1, p.values.shape[1] + 1)))
    p = p._replace(weights=[1 / len(p.budgets)] * len(p.budgets))
    want = reference.nested(cast(p, torch.float64), True)
    # Room for one of the blocks of columns: they are launched one after the other.
    monkeypatch.setattr(triton_kernels, "WORKSPACE_BYTES", 1)
    monkeypatch.setenv("HSAE_DETERMINISTIC", "1")
    narrow = Launch(columns=16, segment_columns=16, few_budgets=0)
    got = triton.launched(narrow).nested(p, True)
    for field in got._fields:
        assert_close(field, getattr(got, field), getattr(want, field), TOLERANCE[torch.float32])


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_every_output_is_written(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh memory is filled with NaN: what a kernel leaves out would show."""

    def poisoned(make: Any) -> Any:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    p = cast(problem("sparse budgets"), dtype, name)
    d_sae = p.W_dec.shape[0]
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    for grad in (False, True):
        solution = IMPLEMENTATIONS[name].nested(p, grad)
        assert all(torch.isfinite(x).all() for x in solution if x is not None)
    assert torch.isfinite(
        IMPLEMENTATIONS[name].encoder_grad(p.values, p.indices, p.target, d_sae)
    ).all()


@pytest.mark.parametrize("wrong", [-1, 5, 1 << 40])
@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_latents_that_do_not_exist_raise(name: str, dtype: torch.dtype, wrong: int) -> None:
    if DEVICE[name].type == "cuda":
        pytest.skip("a device that stopped at the assertion is lost to the tests after it")
    implementation = IMPLEMENTATIONS[name]
    p = cast(problem("one token"), dtype, name)
    p.indices[0, -1] = wrong
    p = p._replace(W_dec=p.W_dec[:5])
    p.indices[0, :-1] %= 5
    with pytest.raises(IndexError, match=r"outside 0\.\.4"):
        implementation.nested(p, True)
    with pytest.raises(IndexError, match=r"outside 0\.\.4"):
        implementation.encoder_grad(p.values, p.indices, p.target, 5)


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_what_does_not_fit_together_never_reaches_a_kernel(name: str, dtype: torch.dtype) -> None:
    implementation = IMPLEMENTATIONS[name]
    p = cast(problem("odd", weighted_tokens=True), dtype, name)
    other = torch.float64 if dtype == torch.float32 else torch.float32
    for field in ("indices", "b_dec", "target", "token_weights"):
        with pytest.raises(ValueError, match=f"{field} must be"):
            implementation.nested(p._replace(**{field: getattr(p, field)[1:]}), True)
    for field in ("values", "b_dec", "target"):
        with pytest.raises(ValueError, match=f"{field} must be"):
            implementation.nested(p._replace(**{field: getattr(p, field).to(other)}), True)
    for budgets in ([1, 51], [2, 1, 50], [1, 49], [0, 50], []):
        with pytest.raises(ValueError, match="budgets"):
            implementation.nested(p._replace(budgets=budgets), True)
    with pytest.raises(ValueError, match="a weight for each"):
        implementation.nested(p._replace(weights=p.weights[1:]), True)
    with pytest.raises(ValueError, match="indices must be"):
        implementation.nested(p._replace(indices=p.indices.int()), True)
    for x in (p.target[1:], p.target.to(other)):
        with pytest.raises(ValueError, match="x must be"):
            implementation.encoder_grad(p.values, p.indices, x, 300)


@pytest.mark.parametrize(("name", "dtype"), RUNS, ids=lambda x: str(x).removeprefix("torch."))
def test_tensors_need_not_be_contiguous(name: str, dtype: torch.dtype) -> None:
    p = cast(problem("crowded latents", weighted_tokens=True), dtype, name)
    want = IMPLEMENTATIONS[name].nested(p, True)
    spread = {
        field: torch.stack([value, value], -1)[..., 0]
        for field, value in p._asdict().items()
        if isinstance(value, torch.Tensor)
    }
    got = IMPLEMENTATIONS[name].nested(p._replace(**spread), True)
    for field in got._fields:
        assert_close(field, getattr(got, field), getattr(want, field), TOLERANCE[dtype])
    d_pre, indices, x = spread["values"], spread["indices"], spread["target"]
    assert torch.equal(
        IMPLEMENTATIONS[name].encoder_grad(d_pre, indices, x, 14),
        IMPLEMENTATIONS[name].encoder_grad(p.values, p.indices, p.target, 14),
    )


def test_native_weight_gradients_do_not_depend_on_the_number_of_threads() -> None:
    if reason := IMPLEMENTATIONS["native"].refuses(torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    p = cast(problem("odd"), torch.float32)
    before = torch.get_num_threads()
    solutions = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            solutions.append(IMPLEMENTATIONS["native"].nested(p, True))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(s.d_W_dec, solutions[0].d_W_dec) for s in solutions)


def test_the_choice_is_explained_and_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.select("scan", CPU, torch.float32, 64, 8).name == "scan"
    assert "float32 only" in kernels.explain(dtype=torch.float64)
    monkeypatch.setenv("HSAE_KERNEL", "reference")
    assert kernels.explain().startswith("reference")
    assert kernels.select("scan", CPU, torch.float32, 64, 8).name == "scan"
    with pytest.raises(ValueError, match="Unknown kernel 'fast'.*Known: auto, native"):
        kernels.select("fast", CPU, torch.float32, 64, 8)
    with pytest.raises(ValueError, match="float32 only, not float64"):
        kernels.select("native", CPU, torch.float64, 64, 8)


def test_the_environment_may_name_a_kernel_or_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSAE_KERNEL", raising=False)
    usual = kernels.explain()
    for nothing in ("", " ", "auto"):
        monkeypatch.setenv("HSAE_KERNEL", nothing)
        assert kernels.explain() == usual
    monkeypatch.setenv("HSAE_KERNEL", "natve")
    with pytest.raises(ValueError, match="'natve' in the environment.*HSAE_KERNEL.*mean 'native'"):
        kernels.explain()
    monkeypatch.setenv("HSAE_KERNEL", "native")
    with pytest.raises(ValueError, match="HSAE_KERNEL.*float32 only, not float64"):
        kernels.explain(dtype=torch.float64)


def test_without_a_compiler_the_scan_is_used_and_says_why() -> None:
    code = (
        "import os, torch; os.environ['PATH'] = ''; os.environ.pop('CC', None)\n"
        "os.environ.pop('TRITON_INTERPRET', None)\n"
        "from hsae_lens.objective.kernels import explain, native\n"
        "print(explain())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("scan")
    assert "found no C compiler" in run.stdout


# Each case spoils a good cache and asks a fresh process for the kernel. The processes are forks of
# one that has imported everything and loaded no kernel yet.
SPOILED_CACHE = """
import json, os, sys
from hsae_lens._util.paths import cache_dir
from hsae_lens.objective.kernels import native

def loads():
    child = os.fork()
    if not child:
        try:
            os._exit(native._library().hsae_slice_width() != 64)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(2)
    return os.waitpid(child, 0)[1]

folder = cache_dir("kernels")
assert loads() == 0
(built,) = folder.glob("*.so")
good = built.read_bytes()
(beside,) = set(folder.iterdir()) - {built}

def write(data):
    built.unlink()
    built.write_bytes(data)

middle = len(good) // 2
cases = {
    "untouched": lambda: None,
    "cut in the middle": lambda: write(good[:middle]),
    "empty": lambda: write(b""),
    "one byte changed": lambda: write(good[:middle] + bytes([good[middle] ^ 1])
                                      + good[middle + 1:]),
    "checksum gone": beside.unlink,
    "checksum empty": lambda: beside.write_text(""),
    "checksum garbled": lambda: beside.write_bytes(b"\\xff" * 64),
    "others may write it": lambda: built.chmod(0o666),
    "others may write its checksum": lambda: beside.chmod(0o622),
    "the folder is open to all": lambda: folder.chmod(0o777),
}
if os.getuid() == 0:
    cases["another user's file"] = lambda: os.chown(built, 12345, -1)
    cases["another user's folder"] = lambda: os.chown(folder, 12345, -1)
seen = {}
for name, spoil in cases.items():
    spoil()
    before = built.stat().st_ino, built.stat().st_mtime_ns
    status = loads()
    rebuilt = before != (built.stat().st_ino, built.stat().st_mtime_ns)
    seen[name] = status, rebuilt, built.read_bytes() == good, folder.stat().st_mode & 0o777
print(json.dumps(seen))
"""


def test_a_spoiled_kernel_in_the_cache_is_built_again(tmp_path: Path) -> None:
    if reason := IMPLEMENTATIONS["native"].refuses(torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    run = subprocess.run(
        [sys.executable, "-c", SPOILED_CACHE],
        capture_output=True,
        text=True,
        env={**os.environ, "HSAE_CACHE_DIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert {name: status for name, (status, *_) in seen.items() if status} == {}, run.stderr
    # A folder of ours that was open to all is closed; in another user's nothing is kept.
    kept = {"untouched", "the folder is open to all", "another user's folder"}
    assert {name for name, (_, rebuilt, *_) in seen.items() if not rebuilt} == kept & set(seen)
    assert all(intact for _, _, intact, _ in seen.values())
    assert seen["the folder is open to all"][3] == 0o700


def test_every_triton_kernel_compiles_for_gpus_and_spills_nothing() -> None:
    """The interpreter takes programs that the compiler refuses; the compiler needs no GPU."""
    if reason := IMPLEMENTATIONS["triton"].refuses(DEVICE["triton"], torch.float32):
        pytest.skip(f"triton {reason}")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = Path(__file__).parents[1] / "helpers" / "compile_for_gpus.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 16
    for line in lines:
        *_, registers, stack = line.split()
        assert int(registers) <= 96, line
        assert int(stack) == 0, line
