"""What is tried before it is used: kernels that fail in each way, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from hsae_lens.objective import OrderedCode, kernels, nested_loss
from hsae_lens.objective.kernels import (
    IMPLEMENTATIONS,
    NestedProblem,
    NestedSolution,
    launches,
    scan,
    triton,
    triton_kernels,
)
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.kernels.probe import LostDeviceError, relative_error, trial_width, try_out

CPU = torch.device("cpu")
FORMATS = (torch.float32, torch.bfloat16, torch.float64)
TRIED = [
    (name, dtype)
    for name in IMPLEMENTATIONS
    for dtype in FORMATS
    if IMPLEMENTATIONS[name].refuses(CPU, dtype) is None
]
Solve = Callable[[NestedProblem, bool], NestedSolution]


@pytest.fixture(autouse=True)
def nothing_was_tried_yet() -> Iterator[None]:
    def forget() -> None:
        kernels.forget()
        launches.launch_on.cache_clear()

    forget()
    yield
    forget()


def the_first(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Puts an implementation in the first place that is like the scan but for ``changes``."""
    first = dataclasses.replace(scan.IMPLEMENTATION, name="native", **changes)
    monkeypatch.setitem(IMPLEMENTATIONS, "native", first)


def raises(error: Exception) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise error

    return call


def wrong(field: str, change: Callable[[torch.Tensor], torch.Tensor], grad: bool = True) -> Solve:
    def solve(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        solution = scan.nested(p, needs_grad)
        if needs_grad != grad:
            return solution
        return solution._replace(**{field: change(getattr(solution, field))})

    return solve


def one_nan(x: torch.Tensor) -> torch.Tensor:
    return x.index_fill(0, torch.tensor([0]), torch.nan)


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "it does not compile": (
        {"solve": raises(RuntimeError("at 3:4:\n  x = tl.load(p)\nPTXAS error: unknown target"))},
        "failed with RuntimeError: PTXAS error: unknown target",
    ),
    "it does not launch": (
        {"reduce": raises(ValueError("out of resource: shared memory"))},
        "failed with ValueError: out of resource: shared memory",
    ),
    **{
        f"a wrong {field}": (
            {"solve": wrong(field, lambda x: x * 1.001)},
            f"gave a wrong {field} (off by 1e-03",
        )
        for field in NestedSolution._fields
    },
    "NaN": ({"solve": wrong("d_W_dec", one_nan)}, "gave a wrong d_W_dec (off by inf"),
    "zeros": (
        {"solve": wrong("suffix", torch.zeros_like)},
        "gave a wrong suffix (off by 1e+00",
    ),
    "a wrong loss where nobody asks for gradients": (
        {"solve": wrong("squared_errors", lambda x: x * 2, grad=False)},
        "gave a wrong loss without gradients (off by 1e+00",
    ),
    "a wrong encoder": (
        {"reduce": lambda *args: 2 * scan.encoder_grad(*args)},
        "gave a wrong d_W_enc (off by 1e+00",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_one_that_fails_is_refused_aloud_and_the_next_is_taken(
    failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changes, cause = FAILURES[failure]
    the_first(monkeypatch, **changes)
    monkeypatch.setitem(IMPLEMENTATIONS, "triton", dataclasses.replace(
        IMPLEMENTATIONS["triton"], refuses=lambda device, dtype: "is not there"))  # fmt: skip
    with caplog.at_level(logging.WARNING):
        for d_in, dtype in ((64, torch.float32), (577, torch.float32), (64, torch.float64)):
            assert kernels.select("auto", CPU, dtype, d_in, 8).name == "scan"
    (record,) = caplog.records  # once, whatever the shape and dtype
    assert f"The kernel 'native' is not used on cpu: it {cause}" in record.getMessage()
    assert f"native {cause}" in kernels.explain()
    assert kernels.explain().startswith("scan")


@pytest.mark.parametrize("failure", FAILURES)
def test_one_that_fails_raises_where_it_was_asked_for(
    failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, cause = FAILURES[failure]
    the_first(monkeypatch, **changes)
    code = OrderedCode(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64))
    for around, asked in (("", "native"), ("native", "auto")):
        monkeypatch.setenv("HSAE_KERNEL", around)
        with pytest.raises(RuntimeError, match="'native' was asked for.*on cpu it ") as caught:
            nested_loss(code, torch.ones(3, 4), torch.zeros(4), torch.ones(2, 4), kernel=asked)
        assert cause in str(caught.value)


def test_what_failed_in_one_format_is_no_longer_used_in_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def solve(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        if p.W_dec.dtype == torch.float64:
            raise RuntimeError("no such instruction")
        return scan.nested(p, needs_grad)

    the_first(monkeypatch, solve=solve)
    assert kernels.select("auto", CPU, torch.float32, 64, 8).name == "native"
    kernels.select("auto", CPU, torch.float64, 64, 8)
    assert kernels.select("auto", CPU, torch.float32, 64, 8).name != "native"


@pytest.mark.parametrize(("name", "dtype"), TRIED, ids=str)
@pytest.mark.parametrize("d_in", [1, 576, 577])
def test_every_implementation_passes_here(name: str, dtype: torch.dtype, d_in: int) -> None:
    # Narrow blocks, as the interpreter is slow.
    launch = Launch(columns=32, segment_columns=32, ranks=4) if name == "triton" else None
    found = try_out(IMPLEMENTATIONS[name], CPU, dtype, trial_width(d_in, launch), launch)
    assert found.failure is None
    assert 0 < found.seconds < 60
    assert 0 <= found.error < 2e-2


def test_a_trial_is_made_once_for_a_class_of_shapes_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = []

    def solve(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        tried.append(p.W_dec.shape[1])
        return scan.nested(p, needs_grad)

    with pytest.MonkeyPatch.context() as monkeypatch:
        the_first(monkeypatch, solve=solve)
        kernels.select("auto", CPU, torch.float32, 64, 8)
        once = len(tried)
        with caplog.at_level(logging.INFO):
            for d_in, k in ((64, 9), (128, 8), (577, 64)):
                kernels.select("auto", CPU, torch.float32, d_in, k)
        assert len(tried) == once
        assert not caplog.records  # the choice was told once
        monkeypatch.setenv("HSAE_DETERMINISTIC", "1")
        kernels.select("auto", CPU, torch.float32, 64, 8)
        assert len(tried) == 2 * once  # other code may run then
        said = kernels.explain()
    assert "it is the fastest; tried in " in said
    assert "ms, within 0e+00 of the plain scan" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs in its interpreter here")
def test_a_launch_that_triton_cannot_compile_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Blocks must be powers of two: Triton itself refuses 24."""
    if reason := triton.IMPLEMENTATION.refuses(CPU, torch.bfloat16):
        pytest.skip(reason)
    entry = {"dtype": "bfloat16", "d_in": 64, "k": 8, "launch": {"columns": 24}}
    monkeypatch.setattr(launches, "_table", lambda: {"cpu": [entry]})
    assert kernels.select("auto", CPU, torch.bfloat16, 64, 8).name == "scan"
    assert "'triton' is not used on cpu: it failed with" in caplog.text
    assert "power of 2" in caplog.text


def test_a_triton_kernel_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reason := triton.IMPLEMENTATION.refuses(CPU, torch.bfloat16):
        pytest.skip(reason)
    really = triton_kernels.nested

    def twice(p: NestedProblem, needs_grad: bool, launch: Launch) -> NestedSolution:
        solution = really(p, needs_grad, launch)
        return solution._replace(residual=solution.residual * 2)

    monkeypatch.setattr(triton_kernels, "nested", twice)
    with pytest.raises(RuntimeError, match="'triton' was asked for.*gave a wrong residual"):
        kernels.select("triton", CPU, torch.bfloat16, 64, 8)


@pytest.mark.parametrize("few_budgets", [0, 8, 99])
@pytest.mark.parametrize("stored", [False, True])
def test_both_ways_to_the_gradient_are_tried_whatever_the_table_says(
    stored: bool, few_budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := triton.IMPLEMENTATION.refuses(CPU, torch.bfloat16):
        pytest.skip(reason)
    really = triton_kernels.nested

    def wrong_one_way(p: NestedProblem, needs_grad: bool, launch: Launch) -> NestedSolution:
        solution = really(p, needs_grad, launch)
        if needs_grad and stored == (len(p.budgets) <= launch.few_budgets):
            return solution._replace(d_W_dec=solution.d_W_dec * 2)
        return solution

    monkeypatch.setattr(triton_kernels, "nested", wrong_one_way)
    launch = Launch(columns=64, segment_columns=64, few_budgets=few_budgets)
    found = try_out(triton.IMPLEMENTATION, CPU, torch.float32, 77, launch)
    assert "gave a wrong d_W_dec" in str(found.failure)


def test_widths_of_trials_fit_no_block_and_are_of_the_kind_of_the_real_one() -> None:
    launch = Launch(columns=64, segment_columns=128)
    widths = {d_in: trial_width(d_in, launch) for d_in in (1, 64, 576, 577, 2304)}
    assert widths == {1: 1, 64: 144, 576: 144, 577: 141, 2304: 144}


def test_explaining_a_device_that_is_not_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="There is no CUDA device here"):
        kernels.explain("cuda")
    assert kernels.explain("meta").startswith("scan")


def test_nothing_is_within_a_tolerance_of_nan() -> None:
    nan, one = torch.tensor([torch.nan]), torch.ones(1)
    assert [relative_error(*pair) for pair in ((nan, one), (one, nan), (nan, nan))] == [
        torch.inf
    ] * 3


def test_a_device_that_a_kernel_broke_is_not_blamed_on_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = []

    def solve(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        lost.append(True)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def plain(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return scan.nested(p, needs_grad)

    the_first(monkeypatch, solve=solve)
    broken = dataclasses.replace(scan.IMPLEMENTATION, solve=plain)
    monkeypatch.setattr(scan, "IMPLEMENTATION", broken)
    with pytest.raises(
        LostDeviceError, match="'native' failed on cpu and left it unusable.*illegal"
    ):
        kernels.select("auto", CPU, torch.float32, 64, 8)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_too_little_memory_is_nobodys_failure(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    the_first(monkeypatch, solve=raises(error("full")))
    with pytest.raises(error, match="full"):
        kernels.select("auto", CPU, torch.float32, 64, 8)
    assert not kernels._broken


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ["native", "bags"])
def test_a_trial_in_any_surroundings_is_the_same_and_leaves_no_trace(
    name: str, around: str
) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    want = try_out(IMPLEMENTATIONS[name], CPU, torch.float32, 77, None)
    with AROUND[around]():
        got = try_out(IMPLEMENTATIONS[name], CPU, torch.float32, 77, None)
    assert (got.error, got.failure) == (want.error, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_launch_of_the_nearest_shape_on_the_same_card_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry(d_in: int, k: int, columns: int, dtype: str = "float32") -> dict[str, Any]:
        return {"dtype": dtype, "d_in": d_in, "k": k, "launch": {"columns": columns}}

    table = {"A card": [entry(2304, 32, 64), entry(2304, 128, 256), entry(512, 32, 16),
                        entry(2304, 32, 1024, "bfloat16")]}  # fmt: skip
    monkeypatch.setattr(launches, "_table", lambda: table)

    def columns(card: str, dtype: torch.dtype, d_in: int, k: int) -> int:
        return launches.launch_for(card, dtype, d_in, k).columns

    assert columns("A card", torch.float32, 2304, 32) == 64
    assert columns("A card", torch.float32, 2048, 100) == 256
    assert columns("A card", torch.float32, 576, 64) == 16
    assert columns("A card", torch.bfloat16, 576, 64) == 1024
    for other in (("Another card", torch.float32), ("A card", torch.float64)):
        assert launches.launch_for(*other, 2304, 32) == launches.DEFAULT


def test_a_launch_that_was_recorded_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "launches.json"
    monkeypatch.setattr(launches, "TABLE", table)
    launches._table.cache_clear()
    slow, fast = Launch(columns=32), Launch(columns=256, few_budgets=0)
    for launch in (slow, fast):  # the second takes the first one's place
        launches.record("A card", torch.float32, 2304, 64, launch, table)
    launches.record("A card", torch.bfloat16, 2304, 64, slow, table)
    assert launches.launch_for("A card", torch.float32, 2304, 64) == fast
    assert launches.launch_for("A card", torch.bfloat16, 2304, 64) == slow
    assert len(json.loads(table.read_text())["A card"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["launches.json"]
    launches._table.cache_clear()


def test_the_table_that_is_shipped_can_be_read() -> None:
    for card, entries in launches._table().items():
        for entry in entries:
            dtype = getattr(torch, entry["dtype"])
            launch = launches.launch_for(card, dtype, entry["d_in"], entry["k"])
            blocks = (launch.columns, launch.segment_columns, launch.ranks, launch.rows)
            assert all(n & (n - 1) == 0 for n in blocks), "Triton's blocks are powers of two"
