"""The arithmetic of docs/kernels.md, on a step small enough to count by hand."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import floor
from benchmarks.floor import H100, Card, Design, Part, Step, memory, parts, seconds, total
from hsae_lens.objective import encode
from hsae_lens.objective.kernels.launches import DEFAULT

ROOT = Path(__file__).parents[2]
# 4 tokens of width 6, 8 latents, K=2, both budgets; two chunks of tokens, two blocks of columns.
TINY = Step(tokens=4, d_in=6, d_sae=8, k=2, budgets=2)
DESIGN = Design(
    chunk_bytes=64, passes=2, scaled_weights=False, columns=4, segment_columns=4, group=4
)


def by_name(step: Step = TINY, design: Design = DESIGN) -> dict[str, Part]:
    return {part.name: part for part in parts(step, design)}


def test_a_tiny_step_by_hand() -> None:
    found = by_name()
    assert found["W_enc scaled (and cast)"].streamed == 0
    # W_enc (48 numbers) for each chunk, 24 activations, 32 pre-activations out.
    assert found["encoder product"].streamed == 4 * (2 * 48 + 24 + 32)
    assert found["encoder product"].operations == 2 * 4 * 6 * 8
    # Two passes read and write 32 numbers, topk reads them five times; norms read W_dec.
    assert found["selection"].gathered == 4 * 32 * (2 + 2 + 5)
    assert found["selection"].streamed == 4 * 48 + 8 * (4 + 8)
    assert found["selection"].live == 4 * 2 * 8
    # With atomics a row of 6 numbers is read and written for each of 8 entries.
    assert found["gradient of W_dec"].gathered == 2 * 4 * 8 * 6
    assert found["gradient of W_dec"].live == 2 * 4 * 8 * 4
    # Errors at 2 budgets read, written and read, for 4 tokens.
    assert found["errors summed"].streamed == 4 * 4 * 3 * 2
    assert found["sort by latent"].streamed == 100 * 8
    # Per block and entry two int64 and a float32; the gradient out.
    assert found["gradient of W_enc"].streamed == 2 * 8 * 20 + 4 * 48
    assert found["gradient of W_enc"].gathered == 4 * 8 * 6
    # One matrix zeroed, one scaled, one transposed.
    assert found["passes over gradients"].streamed == 4 * 48 * (1 + 2 + 2)
    assert found["norm for clipping"].streamed == 4 * 2 * 48
    summed = replace(DESIGN, norm_pass=False)  # not what atomics added
    assert by_name(design=summed)["norm for clipping"].streamed == 4 * 48
    # Weight and moments read and written, the gradient too.
    assert found["Adam"].streamed == 4 * 2 * 48 * 8


def test_other_designs_by_hand() -> None:
    stored = by_name(design=replace(DESIGN, stored=True))["gradient of W_dec"]
    # 4 tokens' suffix sums at 2 budgets out; per block and entry 20 bytes; the gradient out.
    assert stored.streamed == 4 * 4 * 2 * 6 + 2 * 8 * 20 + 4 * 48
    assert (stored.gathered, stored.distinct) == (4 * 8 * 6, 4 * 4 * 2 * 6)
    two_stages = by_name(design=replace(DESIGN, selection="two stages", passes=0))["selection"]
    # All 32 read, 2 maxima per token out; topk of the maxima; 4 candidates for each of 8 entries
    # read, written, and chosen from.
    assert two_stages.gathered == 4 * (32 + 8 + 5 * 8 + 7 * 32)
    epilogue = by_name(design=replace(DESIGN, selection="epilogue", passes=0))
    assert epilogue["selection"].gathered == two_stages.gathered - 4 * (32 + 8)
    assert epilogue["encoder product"].streamed == 4 * (2 * 48 + 24 + 32 + 8)
    bf16 = by_name(replace(TINY, format="bf16"))
    assert bf16["W_enc scaled (and cast)"].streamed == (4 + 2) * 48
    scaled = by_name(design=replace(DESIGN, scaled_weights=True))["W_enc scaled (and cast)"]
    assert scaled.streamed == 2 * 4 * 48
    assert bf16["encoder product"].streamed == 2 * (2 * 48 + 24 + 32)
    assert bf16["selection"].gathered == 2 * 32 + 4 * 32 * (1 + 2 + 5)
    fused = by_name(design=replace(DESIGN, stored=True, fused=2))
    assert fused["gradient of W_enc"].gathered == 2 * 4 * 8 * 6
    assert fused["gradient of W_enc"].streamed == 2 * 2 * 8 * 20
    assert fused["Adam"].streamed == 4 * 2 * 48 * 6
    with pytest.raises(ValueError, match="stored=True"):
        parts(TINY, replace(DESIGN, fused=1))


def test_the_scan_moves_what_a_walk_through_its_loops_counts() -> None:
    bytes_, rows = Counter[str](), Counter[str]()
    for columns in (range(4), range(4, 6)):  # blocks
        for _token in range(TINY.tokens):
            bytes_["forward"] += 2 * 4 * len(columns)  # the target in, the residual out
            earlier = 4 if columns[0] else 0  # what an earlier block has added up
            for _rank in range(TINY.k):
                bytes_["forward"] += 4 + 8 + earlier + 4  # value and latent in, an error out
                rows["forward"] += 4 * len(columns)
            for _rank in reversed(range(TINY.k)):
                bytes_["backward"] += 4 + 8 + earlier + 4  # value and latent in, d_value out
                rows["backward"] += 4 * len(columns)
            bytes_["backward"] += 4 * len(columns)  # the suffix sum out
    found = by_name()
    for way in ("forward", "backward"):
        assert found[f"loss, {way}"].streamed == bytes_[way]
        assert found[f"loss, {way}"].gathered == rows[way]
    # What the forward pass left in L2 costs memory nothing backward.
    assert [found[f"loss, {way}"].distinct for way in ("forward", "backward")] == [4 * 8 * 6, 0]


def test_what_stays_in_l2_is_read_from_memory_once() -> None:
    card = Card("small", copy=10, l2=40, l2_bytes=100, operations={"float32": 1000})
    part = Part("x", streamed=30, gathered=800, distinct=70, live=100, operations=1000)
    assert memory(part, card) == 30 + 70
    assert seconds(part, card) == 800 / 40  # L2 takes longest
    too_much = replace(part, live=101)
    assert memory(too_much, card) == 30 + 800
    assert seconds(too_much, card) == 830 / 10
    assert seconds(replace(part, gathered=0, streamed=0, operations=10**6), card) == 1000


def designs() -> list[Design]:
    switches = itertools.product(
        (16 << 20, 64 << 20, 512 << 20),
        ("topk", "two stages", "epilogue"),
        (0, 2),
        (32, 128, 512),
        ((False, 0), (True, 0), (True, 1), (True, 2)),
    )
    return [
        Design(chunk, passes, selection, columns=columns, stored=stored, fused=fused, sorts=0,
               scaled=False, transposed=False, norm_pass=False, written_back=False)
        for chunk, selection, passes, columns, (stored, fused) in switches
    ]  # fmt: skip


@pytest.mark.parametrize("fmt", ["tf32", "bf16"])
@pytest.mark.parametrize("k", [1, 32, 128])
def test_no_part_of_any_design_is_below_the_floor(k: int, fmt: str) -> None:
    for budgets in {1, k}:
        step = floor.shape(k, fmt, budgets)
        for design in [floor.TODAY, *designs()]:
            for least, part in zip(floor.floor(step), parts(step, design), strict=True):
                assert least.name == part.name
                assert least.gathered <= part.gathered
                assert least.operations <= part.operations
                assert memory(least, H100) <= memory(part, H100), (part.name, design)
                assert seconds(least, H100) <= seconds(part, H100), (part.name, design)


@pytest.mark.parametrize("design", [floor.TODAY, floor.STORED, floor.TOGETHER])
def test_more_latents_per_token_never_cost_less(design: Design) -> None:
    ks = [1, 2, 8, 32, 64, 128, 256]
    times = [total(parts(floor.shape(k), design), H100) for k in ks]
    assert times == sorted(times)
    assert len(set(times)) == len(times)
    floors = [total(floor.floor(floor.shape(k)), H100) for k in ks]
    assert floors == sorted(floors)


def test_today_is_what_the_code_does() -> None:
    assert floor.TODAY.chunk_bytes == encode.CHUNK_BYTES_ON_CUDA
    assert floor.TODAY.columns == DEFAULT.columns
    assert floor.TODAY.segment_columns == DEFAULT.segment_columns
    assert (floor.TODAY.selection, DEFAULT.selection_group) == ("topk", 0)


def test_the_page_has_the_tables() -> None:
    page = floor.PAGE.read_text(encoding="utf-8")
    assert page.split(floor.BEGIN)[1].split(floor.END)[0].strip() == floor.tables()


def test_writing_replaces_what_is_between_the_markers_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{floor.BEGIN}\nold\n{floor.END}\nafter\n", encoding="utf-8")
    floor.write(page)
    text = f"before\n{floor.BEGIN}\n{floor.tables()}\n{floor.END}\nafter\n"
    assert page.read_text(encoding="utf-8") == text


def test_it_runs_where_nothing_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.floor"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == floor.tables()
