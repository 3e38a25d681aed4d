"""``python -m benchmarks gpu`` as a process, without a GPU: every part, and what can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.command import NEED_SAELENS, PARTS
from benchmarks.gpu.tune import _best_of, _disagreement, _few_budgets, _problem, tune
from benchmarks.problems import Shape
from benchmarks.record import store
from benchmarks.session import Session
from hsae_lens.objective.kernels import launches

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton")

# What Python runs first, in the command's process and in those that it starts.
# Only what a rented machine has can be imported.
BARE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        missing = name.split(".")[0] in {"sae_lens", "transformer_lens", "transformers", "datasets",
                                         "huggingface_hub", "pandas", "matplotlib", "yaml", "tqdm"}
        return None if missing else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""
# A kernel that gives back what it should not, one that does not compile, one that ends its process.
BROKEN = f"""{BARE}
import os
os.environ["TRITON_INTERPRET"] = "1"
from hsae_lens.objective.kernels import bags, triton_kernels
import dataclasses, hsae_lens.objective.kernels as kernels

really = triton_kernels.nested
def doubled(p, needs_grad, launch):
    solution = really(p, needs_grad, launch)
    return solution._replace(residual=2 * solution.residual)
triton_kernels.nested = doubled

def reduce(d_pre, *_):
    if d_pre.element_size() == 2:
        os.abort()
    raise RuntimeError("what it was given\\nptxas: no such instruction")
kernels.IMPLEMENTATIONS["bags"] = dataclasses.replace(bags.IMPLEMENTATION, reduce=reduce)
"""


def run(*arguments: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """The command, in processes that all run some code first."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TRITON_INTERPRET", "HSAE_KERNEL")
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(first)
        environment["PYTHONPATH"] = os.pathsep.join([folder, str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "benchmarks", "gpu", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )


def published() -> dict[str, str]:
    """What a dry run must not touch."""
    files = [ROOT / "README.md", ROOT / "docs" / "benchmarks.md", launches.TABLE,
             *(ROOT / "benchmarks" / "results").iterdir()]  # fmt: skip
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_dry_run_goes_through_every_part(tmp_path: Path) -> None:
    before, out = published(), tmp_path / "dry.json"
    done = run("--dry-run", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert published() == before
    figures: dict[str, Any] = json.loads(out.read_text())
    assert figures.pop("dry run") is True
    assert set(figures) == {*PARTS, "gpu"}
    for part in figures.values():
        assert part["rows"]
        assert part["machine"]["torch"]
    (summary,) = figures["gpu"]["rows"]
    assert summary["failed"] == []
    kernels = {(row["kernel"], row["dtype"]) for row in figures["check"]["rows"]}
    assert {("triton", "float32"), ("triton", "bfloat16"), ("bags", "float32")} <= kernels
    assert all(row["cases"] and not row["failed"] for row in figures["check"]["rows"])
    tuned = json.loads((tmp_path / "launches.json").read_text())
    assert [entry["dtype"] for entry in tuned["cpu"]] == ["float32", "bfloat16"]
    assert figures["tune"]["rows"][0]["seconds"]["nested"]
    assert {"bags", "scan", "naive", "ours, J={K}"} <= figures["loss"]["rows"][0].keys()


def test_with_pytorch_and_triton_alone_it_measures_what_it_can(tmp_path: Path) -> None:
    out = tmp_path / "bare.json"
    parts = ("step", "limits", "gemma")
    done = run("--dry-run", "--out", str(out), *parts, first=BARE)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert set(figures) == {"limits", "gpu", "dry run"}
    assert figures["limits"]["rows"][0]["trainer"] is False
    left_out = figures["gpu"]["rows"][0]["left_out"]
    assert left_out == dict.fromkeys(("step", "gemma"), "it needs SAELens (pip install -e .)")
    assert "left out: step: it needs SAELens" in done.stdout


def test_a_kernel_that_fails_ends_it_with_1_and_is_named(tmp_path: Path) -> None:
    out = tmp_path / "broken.json"
    parts = ("check", "tune", "deterministic")
    done = run("--dry-run", "--out", str(out), *parts, first=BROKEN)
    assert done.returncode == 1, done.stderr
    figures = json.loads(out.read_text())
    # The parts that follow use the fastest that passed.
    assert "tune" not in figures
    assert not (tmp_path / "launches.json").exists()
    assert figures["deterministic"]["kernel"].startswith(("native", "scan"))
    assert figures["deterministic"]["rows"]
    failed = {(row["kernel"], row["dtype"]) for row in figures["check"]["rows"] if row["failed"]}
    assert failed == {(k, d) for k in ("triton", "bags") for d in ("float32", "bfloat16")}
    lines = "\n".join(figures["gpu"]["rows"][0]["failed"])
    assert "triton float32: K = d_sae, plain: residual is off by 1.0e+00" in lines
    assert "bags float32: one column, zipf: RuntimeError: ptxas: no such instruction" in lines
    assert "bags bfloat16: the check ended its process with status -6" in lines
    assert {"kernel": "scan", "dtype": "bfloat16", "failed": []}.items() <= (
        figures["check"]["rows"][-1].items()
    )  # checked in another process
    assert "FAILED: triton float32" in done.stdout


def test_what_there_is_no_time_for_is_left_out_and_said(tmp_path: Path) -> None:
    out = tmp_path / "none.json"
    done = run("--dry-run", "--minutes", "0", "--out", str(out), first=BARE)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    left_out = dict.fromkeys(PARTS, "no time was left")
    left_out |= dict.fromkeys(NEED_SAELENS, "it needs SAELens (pip install -e .)")
    assert figures["gpu"]["rows"][0]["left_out"] == left_out
    assert "left out: tune: no time was left" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no CUDA device here. --dry-run goes through everything at small sizes"),
        (("--dry-run", "--out", "benchmarks/results/cuda.json"), "do not go to"),
        (("--dry-run", "--flex", "."), "has no folder flex_sae in it"),
        (("--dry-run", "tunes"), "invalid choice: 'tunes'"),
        (("--dry-run", "--minutes", "soon"), "invalid float value: 'soon'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is one")
    done = run(*arguments, first=BARE)
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_and_a_real_one_share_no_file(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    for dry, part in ((True, "loss"), (True, "step"), (False, "loss"), (True, "memory")):
        store(out, part, "cpu", [{"shape": {"d_in": 64, "k": 4}}], dry)
        figures = json.loads(out.read_text())
        assert figures.get("dry run", False) == dry
    assert set(figures) == {"dry run", "memory"}


def test_one_peer_that_does_not_run_leaves_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise RuntimeError("no compiler")

    run = Session("cpu", [])
    assert list(run.fitting({"ours": int, "peer": fails, "other": int}, "a size")) == [
        "ours",
        "other",
    ]
    assert run.left_out == {"peer at a size": "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError, match="no compiler"):
        run.fitting({"ours": fails}, "a size")


def test_what_no_time_was_left_for_is_not_recorded(tmp_path: Path) -> None:
    run = Session("cpu", [Shape(6, 48, 32, 4)], dry=True, deadline=0)
    p = _problem(run.shapes[0], "cpu", torch.float32)
    assert _few_budgets(run, p, launches.DEFAULT) == launches.DEFAULT.few_budgets
    assert _best_of(run, p, "nested", launches.DEFAULT, {"columns": (32,)}) == (
        launches.DEFAULT,
        {},
    )
    assert not list(tune(run, tmp_path / "launches.json"))
    assert not list(tmp_path.iterdir())


def test_a_launch_that_computes_something_else_or_nothing_is_not_taken() -> None:
    def too_large() -> None:
        raise RuntimeError("out of resource: shared memory\nRequired: 300000")

    want = torch.ones(3)
    assert _disagreement(lambda: torch.ones(3), want, torch.float32) is None
    assert _disagreement(lambda: 2 * want, want, torch.float32) == "it is off by 1e+00"
    assert _disagreement(too_large, want, torch.float32) == "RuntimeError: Required: 300000"
    nothing = torch.full((3,), torch.nan)
    assert _disagreement(lambda: (want, nothing), (want, want), torch.float32) == "it is off by inf"


def test_what_a_part_measured_before_a_failure_stays() -> None:
    shapes = [Shape(n, 4, 8, 2) for n in range(1, 5)]

    def measure(_: Session, shape: Shape) -> dict[str, Any]:
        if shape.tokens == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        if shape.tokens == 3:
            raise SystemExit("The losses differ.")
        return vars(shape)

    run = Session("cpu", shapes, goes_on=True)
    assert [row["tokens"] for row in run.each_shape("step", measure, 1.0)] == [1, 4]
    assert run.left_out == {f"step at {shapes[1]}": "it does not fit into the device's memory"}
    assert run.failed == [f"step at {shapes[2]}: SystemExit: The losses differ."]
    with pytest.raises(torch.OutOfMemoryError):  # the other command ends, and stores nothing
        list(Session("cpu", shapes).each_shape("step", measure, 1.0))
