"""What a card is asked beyond times, at sizes for a CPU: the profile, and Gemma-2's shape."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.gpu import gemma as gemmas
from benchmarks.gpu import profiling
from benchmarks.gpu.gemma import gemma
from benchmarks.gpu.profiling import profile
from benchmarks.problems import LossProblem, Shape, cumulative_sum_loss
from benchmarks.session import Session
from hsae_lens.objective import encode

ROOT = Path(__file__).parents[2]
# As on a card, prefixes and pre-activations are larger than a weight matrix.
SHAPE = Shape(tokens=80, d_in=16, d_sae=64, k=12)
SUBJECTS = ["loss", "loss, 8 budgets", "encoder", "step"]


def dry(**settings: Any) -> Session:
    return Session("cpu", [SHAPE], rounds=2, dry=True, **settings)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "CHUNK_BYTES", 4 * SHAPE.d_sae * 10)  # ten tokens at a time
        return profile(dry())


def of(rows: list[dict[str, Any]], what: str) -> dict[str, dict[str, Any]]:
    return {row["of"]: row for row in rows if row["what"] == what}


def test_each_subject_has_every_row_and_they_are_json(rows: list[dict[str, Any]]) -> None:
    whats = ["kernels", "bytes", "allocations", "waits"]
    assert [(r["of"], r["what"]) for r in rows] == [(s, w) for s in SUBJECTS for w in whats]
    assert all(row["shape"] == vars(SHAPE) for row in json.loads(json.dumps(rows)))


def test_kernels_are_sorted_and_share_the_time(rows: list[dict[str, Any]]) -> None:
    for name, row in of(rows, "kernels").items():
        seconds = [kernel["seconds"] for kernel in row["kernels"]]
        assert seconds == sorted(seconds, reverse=True)
        assert 0 < len(seconds) <= 15
        assert 0.5 < sum(kernel["share"] for kernel in row["kernels"]) < 1 + 1e-6, name
    names = {kernel["name"] for kernel in of(rows, "kernels")["encoder"]["kernels"]}
    assert {"aten::addmm", "aten::topk"} <= names


def test_bytes_are_those_counted_by_hand(rows: list[dict[str, Any]]) -> None:
    found = of(rows, "bytes")
    entries, row, gradient = 80 * 12, 4 * 16, 4 * 64 * 16
    # One block of columns: two int64 and a float32 an entry, a row of x each, the gradient out.
    assert found["encoder"]["asked"] == entries * (20 + row) + gradient
    for name in SUBJECTS:
        assert found[name]["copy_per_s"] > 0
        assert (found[name]["seconds"], found[name]["asked_per_s"]) == (None, None)
    both = found["loss"]["asked"] + found["encoder"]["asked"]
    assert found["step"]["asked"] == pytest.approx(both)


def test_a_kernels_bytes_are_divided_by_its_own_time() -> None:
    times = {"_nested_kernel": 3.0, "void sort": 5.0, "_segment_sum_kernel_0d1d": 1.0}
    kernels = [{"name": name, "seconds": seconds} for name, seconds in times.items()]
    part = profiling.Part("any", streamed=100, gathered=300, distinct=60, live=10)
    found = profiling._bytes([part], kernels, "cpu", 1.0)
    assert found["names"] == ["_nested_kernel", "_segment_sum_kernel_0d1d"]
    assert (found["asked_per_s"], found["moved_per_s"]) == (400 / 4, 160 / 4)


def test_nothing_dense_is_made_but_what_may_be(rows: list[dict[str, Any]]) -> None:
    for name, row in of(rows, "allocations").items():
        assert row["dense"] == [], name
        assert row["largest"][0]["bytes"] > 0


def test_what_is_dense_is_named() -> None:
    problem = LossProblem(SHAPE, "cpu")
    naive = profiling.Subject("naive", lambda: problem.naive(cumulative_sum_loss), [], 0)
    dense = profiling._allocations(naive, SHAPE, "cpu")["dense"]
    assert any("as large as [B, K, d_in]" in line for line in dense)
    # The encoder with a chunk for all tokens, where none was allowed.
    whole = profiling.Subject("whole", profiling._encoder(SHAPE, "cpu"), [], 0)
    dense = profiling._allocations(whole, SHAPE, "cpu")["dense"]
    assert [line.split(": ")[0] for line in dense] == ["aten::addmm"]
    allowed = replace(whole, bounded=4 * SHAPE.tokens * SHAPE.d_sae)
    assert profiling._allocations(allowed, SHAPE, "cpu")["dense"] == []


def test_waits_are_left_out_on_a_cpu_and_nothing_begins_after_the_deadline() -> None:
    run = dry(deadline=time.monotonic())
    assert profile(run) == []
    assert run.left_out["host waits"] == "needs CUDA"
    assert run.left_out["profile of loss"] == "no time was left"
    assert gemma(run) == []


def test_tokens_a_second_are_tokens_by_the_median() -> None:
    (row,) = gemma(dry())
    for name in ("model", "step", "both"):
        rate = row["shape"]["tokens"] / row[name]["median"]
        assert row[name]["tokens_per_s"] == pytest.approx(rate, rel=2e-3)


def test_the_model_gives_the_residual_stream_of_its_last_layer() -> None:
    """As the hidden states of one layer more have it: the last ones of a model are normed."""
    model = gemmas._model(gemmas.TINY, 16, dry())
    tokens = torch.arange(16)[None]
    caught: list[torch.Tensor] = []
    model.layers[-1].register_forward_hook(
        lambda _, __, out: caught.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        given = model(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(given.reshape(16, -1), caught[0].reshape(16, -1))


def test_the_models_size_is_that_of_half_of_gemma_2_2b() -> None:
    full = Session("meta", [], dry=False)
    model = gemmas._model(gemmas.FULL, 1024, full)
    assert model.dtype == torch.bfloat16
    of_layer = 2304 * (2 * 8 * 256 + 2 * 4 * 256 + 3 * 9216 + 4)  # q, o, k, v, the MLP, norms
    assert sum(p.numel() for p in model.parameters()) == 256_000 * 2304 + 13 * of_layer


ON_A_BARE_MACHINE = """
import sys
absent = ("sae_lens", "transformer_lens", "transformers", "datasets", "pandas", "scipy")
sys.modules.update(dict.fromkeys(absent))
from benchmarks.gpu.gemma import WHAT, gemma
from benchmarks.gpu.profiling import profile
from benchmarks.problems import Shape
from benchmarks.session import Session
run = Session("cpu", [Shape(8, 16, 32, 4)], rounds=1, dry=True)
assert {row["of"] for row in profile(run)} == {"loss", "loss, 8 budgets", "encoder", "step"}
assert gemma(run) == []
assert "transformers and SAELens" in run.left_out[WHAT]
"""


def test_on_a_bare_machine_what_needs_saelens_is_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_BARE_MACHINE], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class OnACard(NamedTuple):
    """As the profiler tells of a card; none is here."""

    key: str
    device_type: DeviceType
    is_user_annotation: bool
    self_device_time_total: float


def test_a_cards_time_is_counted_once() -> None:
    events = [
        OnACard("aten::mm", DeviceType.CPU, False, 7.0),  # the time of what it launched
        OnACard("gemm", DeviceType.CUDA, False, 7.0),
        OnACard("Optimizer.step#Adam.step", DeviceType.CUDA, True, 9.0),
    ]
    assert [profiling._microseconds(event, "cuda") for event in events] == [0, 7, 0]
