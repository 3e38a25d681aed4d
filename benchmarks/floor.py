"""``python -m benchmarks.floor``: what a training step must move and compute, by arithmetic alone.

Nothing here is measured, and nothing is needed to run it: no GPU, no PyTorch. ``--write`` puts the
tables into docs/kernels.md, which explains them. B tokens with K latents each are n = B·K entries.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "kernels.md"
WORD = 4  # bytes of a float32
INDEX = 8  # of an int64
TOPK_READS = 5  # torch.topk on CUDA: a histogram for each 8 bits of a float32, and one to gather
SORT_BYTES = 100  # per key: four passes read and write an int32 and an int64, one more counts


@dataclass(frozen=True)
class Step:
    """A training step as configured by default: b_dec is subtracted, latents chosen by norm.

    format: of the encoder product, "bf16" (autocast) or "tf32"; all else is float32.
    """

    tokens: int
    d_in: int
    d_sae: int
    k: int
    budgets: int
    format: str = "tf32"

    @property
    def entries(self) -> int:
        return self.tokens * self.k

    @property
    def row_words(self) -> int:
        """n·d_in: a decoder row for every entry."""
        return self.entries * self.d_in

    @property
    def weights(self) -> int:
        """d_sae·d_in: the size of one weight matrix."""
        return self.d_sae * self.d_in

    @property
    def operand(self) -> int:
        """Bytes of a number that the encoder product reads or writes."""
        return {"bf16": 2, "tf32": 4}[self.format]


@dataclass(frozen=True)
class Design:
    """How a step is implemented; the defaults are today's, on CUDA with Triton.

    chunk_bytes: float32 pre-activations at once; for each chunk the product reads W_enc again.
    passes: over pre-activations between product and selection: 2 for bias and norms, 1, 0.
    scaled_weights: whether W_enc is scaled by the norms that choose, in a pass before the product.
    selection: "topk", "two stages" or "epilogue" (the product writes the maxima of groups too).
    group: latents in a group of the selection.
    columns, segment_columns: of d_in per program, as in ``Launch``.
    stored: whether suffix sums are stored and summed by a sort, instead of added by atomics.
    sorts: of all entries.
    scaled: whether W_dec's gradient is multiplied by the loss's in a pass.
    transposed: whether W_enc's gradient is turned to ``[d_in, d_sae]`` in a pass.
    norm_pass: whether the norm for clipping is a pass over both gradients, or is added up by the
        sums that write them.
    written_back: whether Adam writes the clipped gradients (torch's does, given a grad_scale).
    fused: 0: gradients go through memory. 1: Adam's pass sums each latent's entries itself.
        2: so does a pass before it, for the norm.
    """

    chunk_bytes: int = 512 << 20
    passes: int = 0
    scaled_weights: bool = True
    selection: str = "topk"
    group: int = 32
    columns: int = 64
    segment_columns: int = 128
    stored: bool = False
    sorts: int = 1
    scaled: bool = True
    transposed: bool = True
    norm_pass: bool = True
    written_back: bool = True
    fused: int = 0


@dataclass(frozen=True)
class Part:
    """One part of a step.

    streamed: bytes that go through memory in any case.
    gathered: bytes asked for again and again, of ``distinct`` bytes. Where the ``live`` bytes that
        are asked for at one time stay in L2, memory moves the distinct ones only.
    operations: floating point ones, in the number format ``unit``.
    """

    name: str
    streamed: float = 0
    gathered: float = 0
    distinct: float = 0
    live: float = 0
    operations: float = 0
    unit: str = "float32"


@dataclass(frozen=True)
class Card:
    """A card's limits: bytes per second of a copy (read and written) and of L2, operations per
    second by format, and the bytes of L2."""

    name: str
    copy: float
    l2: float
    l2_bytes: float
    operations: dict[str, float]


H100 = Card(
    name="H100",
    copy=3.0e12,  # measured elsewhere
    l2=5.5e12,  # an assumption
    l2_bytes=50e6,  # its data sheet
    operations={
        "bf16": 798e12,  # measured elsewhere, 8192³
        "tf32": 399e12,  # an assumption: half of bf16
        "float32": 67e12,  # its data sheet
    },
)


def memory(part: Part, card: Card) -> float:
    """Bytes through the card's memory."""
    resident = part.live <= card.l2_bytes
    return part.streamed + (min(part.distinct, part.gathered) if resident else part.gathered)


def seconds(part: Part, card: Card) -> float:
    """The longest of what memory, L2 and arithmetic need: within a part they overlap."""
    return max(
        memory(part, card) / card.copy,
        part.gathered / card.l2,
        part.operations / card.operations[part.unit],
    )


def total(parts: Iterable[Part], card: Card) -> float:
    """Seconds of parts that run one after another."""
    return sum(seconds(part, card) for part in parts)


def parts(step: Step, design: Design) -> list[Part]:
    """The parts of a step, in order."""
    return [
        _weights(step, design),
        _product(step, design),
        _selection(step, design),
        *loss_parts(step, design),
        Part(SORT, SORT_BYTES * step.entries * design.sorts),
        _encoder_gradient(step, design),
        _gradient_passes(step, design),
        _biases(step),
        _norm(step, design),
        _adam(step, design),
    ]


def loss_parts(step: Step, design: Design) -> list[Part]:
    """The nested loss: forward, backward, errors summed over tokens, and the gradient of W_dec."""
    return [
        _forward(step, design),
        _backward(step, design),
        Part(ERRORS, 3 * WORD * step.tokens * step.budgets),
        _stored_gradient(step, design) if design.stored else _atomic_gradient(step, design),
    ]


def floor(step: Step) -> list[Part]:
    """The same parts with what no sparse implementation leaves out.

    That is the product, each weight read where it is used, Adam's state read and written once, and
    three times n·d_in words through L2: the rows that reconstruct, and what each entry adds to the
    two gradients. Pre-activations and gradients never reach memory, and the norm costs nothing.
    """
    code = step.entries * (WORD + INDEX)
    tokens = WORD * step.tokens * step.d_in
    rows = WORD * step.row_words
    used = WORD * min(step.entries, step.d_sae) * step.d_in
    at_budgets = 2 * step.tokens * step.budgets * step.d_in
    flops = 2 * step.row_words
    return [
        Part(WEIGHTS),
        Part(
            PRODUCT,
            streamed=step.operand * (step.weights + step.tokens * step.d_in),
            operations=2 * step.tokens * step.weights,
            unit=step.format,
        ),
        Part(SELECTION, streamed=code),
        Part(FORWARD, tokens + code, rows, used, operations=flops + at_budgets),
        Part(BACKWARD, operations=flops + at_budgets),
        Part(ERRORS),
        Part(W_DEC, gathered=rows, operations=flops),
        Part(SORT),
        Part(W_ENC, gathered=rows, distinct=tokens, operations=flops),
        Part(PASSES),
        Part(BIASES, streamed=WORD * step.entries),
        Part(NORM),
        Part(ADAM, 6 * WORD * 2 * step.weights, operations=2 * ADAM_OPERATIONS * step.weights),
    ]


WEIGHTS, PRODUCT, SELECTION = "W_enc scaled (and cast)", "encoder product", "selection"
FORWARD, BACKWARD, ERRORS = "loss, forward", "loss, backward", "errors summed"
W_DEC, SORT, W_ENC = "gradient of W_dec", "sort by latent", "gradient of W_enc"
PASSES, BIASES = "passes over gradients", "biases, reconstruction"
NORM, ADAM = "norm for clipping", "Adam"
ADAM_OPERATIONS = 12  # per weight


def _weights(step: Step, design: Design) -> Part:
    """Scaled in a pass of its own; autocast keeps its copy for all chunks of a step."""
    scaled = 2 * WORD if design.scaled_weights else 0
    cast = WORD + 2 if step.format == "bf16" else 0
    return Part(WEIGHTS, (scaled + cast) * step.weights)


def _chunks(step: Step, design: Design) -> int:
    rows = max(1, design.chunk_bytes // (WORD * step.d_sae))
    return ceil(step.tokens / rows)


def _product(step: Step, design: Design) -> Part:
    written = step.tokens * step.d_sae * step.operand
    if design.selection == "epilogue":  # in float32, with the maxima of groups
        written = WORD * step.tokens * (step.d_sae + ceil(step.d_sae / design.group))
    read = step.operand * (_chunks(step, design) * step.weights + step.tokens * step.d_in)
    return Part(
        PRODUCT,
        streamed=read + written,
        operations=2 * step.tokens * step.weights,
        unit=step.format,
    )


def _selection(step: Step, design: Design) -> Part:
    """Of pre-activations: the passes before, topk's reads, and the norms of W_dec that scale it."""
    pre = WORD * step.tokens * step.d_sae
    bias, scale = step.tokens * step.d_sae * step.operand + pre, 2 * pre
    before = {0: 0, 1: scale, 2: bias + scale}[design.passes]
    if step.format == "bf16" and design.passes < 2:
        before += bias  # autocast would round it in the product
    if design.selection == "topk":
        read = TOPK_READS * pre
    else:
        maxima = WORD * step.tokens * ceil(step.d_sae / design.group)
        candidates = WORD * step.entries * design.group
        read = TOPK_READS * maxima + (2 + TOPK_READS) * candidates
        if design.selection == "two stages":
            read += pre + maxima
    return Part(
        SELECTION,
        streamed=WORD * step.weights + step.entries * (WORD + INDEX),
        gathered=before + read,
        distinct=pre,
        live=pre / _chunks(step, design),
    )


def _blocks(step: Step, design: Design) -> int:
    return ceil(step.d_in / design.columns)


def _slice_bytes(step: Step, design: Design) -> int:
    """What all tokens gather from while one block of columns runs: W_dec, with atomics d_W_dec."""
    return WORD * step.d_sae * design.columns * (1 if design.stored else 2)


def _code_bytes(step: Step, design: Design) -> int:
    """Forward or backward, each block reads the code and adds to a number per entry."""
    added = (2 * _blocks(step, design) - 1) * WORD  # the first block has nothing to read
    return step.entries * (_blocks(step, design) * (WORD + INDEX) + added)


def _forward(step: Step, design: Design) -> Part:
    return Part(
        FORWARD,
        streamed=2 * WORD * step.tokens * step.d_in + _code_bytes(step, design),
        gathered=WORD * step.row_words,
        distinct=WORD * min(step.entries, step.d_sae) * step.d_in,
        live=_slice_bytes(step, design),
        operations=4 * step.row_words,
    )


def _backward(step: Step, design: Design) -> Part:
    """Rows again, from the slice that the forward pass left in L2 if it stays there; s_1 out."""
    return replace(
        _forward(step, design),
        name=BACKWARD,
        streamed=WORD * step.tokens * step.d_in + _code_bytes(step, design),
        distinct=0,
        operations=7 * step.row_words,
    )


def _atomic_gradient(step: Step, design: Design) -> Part:
    """Each entry reads and writes a row of it, in L2."""
    if design.fused:
        raise ValueError("a pass fused with Adam sums stored suffix sums: set stored=True")
    return Part(
        W_DEC,
        gathered=2 * WORD * step.row_words,
        distinct=2 * WORD * min(step.entries, step.d_sae) * step.d_in,
        live=_slice_bytes(step, design),
        operations=2 * step.row_words,
    )


def _segment_bytes(step: Step, design: Design) -> int:
    """Entry, coefficient and row number of each entry, for each block; and the gradient out."""
    read = step.entries * (2 * INDEX + WORD) * ceil(step.d_in / design.segment_columns)
    return max(1, design.fused) * read + (0 if design.fused else WORD * step.weights)


def _stored_gradient(step: Step, design: Design) -> Part:
    """Each distinct suffix sum is written once, and gathered by the entries that share it."""
    times = max(1, design.fused)
    stored = WORD * step.tokens * step.budgets
    return Part(
        W_DEC,
        streamed=stored * step.d_in + _segment_bytes(step, design),
        gathered=times * WORD * step.row_words,
        distinct=times * stored * step.d_in,
        live=stored * min(design.segment_columns, step.d_in),
        operations=2 * times * step.row_words,
    )


def _encoder_gradient(step: Step, design: Design) -> Part:
    times = max(1, design.fused)
    return Part(
        W_ENC,
        streamed=_segment_bytes(step, design),
        gathered=times * WORD * step.row_words,
        distinct=times * WORD * step.tokens * step.d_in,
        live=WORD * step.tokens * min(design.segment_columns, step.d_in),
        operations=2 * times * step.row_words,
    )


def _gradient_passes(step: Step, design: Design) -> Part:
    """W_dec's zeroed for atomics, and scaled by the loss's; W_enc's transposed."""
    words = 2 * design.scaled + 2 * design.transposed
    return Part(PASSES, 0 if design.fused else WORD * step.weights * (words + (not design.stored)))


def _biases(step: Step) -> Part:
    """b_enc's from the code, b_dec's from suffix sums and, as it is subtracted, from W_enc.

    The reconstruction is residual and target added.
    """
    of_b_enc = step.entries * (2 * WORD + INDEX)
    return Part(BIASES, of_b_enc + WORD * (4 * step.tokens * step.d_in + step.weights))


def _norm(step: Step, design: Design) -> Part:
    """A pass over both gradients, or over what atomics added: only a finished sum has a square."""
    matrices = 2 if design.norm_pass else 1 - design.stored
    return Part(NORM, 0 if design.fused else WORD * matrices * step.weights)


def _adam(step: Step, design: Design) -> Part:
    """Weight and two moments read and written; the gradient read, and written back."""
    gradient = 0 if design.fused else 1 + design.written_back
    return Part(
        ADAM,
        (6 + gradient) * WORD * 2 * step.weights,
        operations=2 * ADAM_OPERATIONS * step.weights,
    )


# The tables of docs/kernels.md.

BUDGETS = (32, 64, 128)
MIB = 1 << 20
TODAY = Design()
STORED = replace(TODAY, stored=True)
LEAN = replace(TODAY, scaled=False, transposed=False, norm_pass=False, written_back=False)
CHANGES = {
    "product and selection in chunks of 32 MiB, kept in L2": replace(TODAY, chunk_bytes=32 * MIB),
    "in chunks of 64 MiB, as on a CPU": replace(TODAY, chunk_bytes=64 * MIB),
    "selection in two stages": replace(TODAY, selection="two stages"),
    "two stages that scale by norms as they read": replace(
        TODAY, selection="two stages", scaled_weights=False
    ),
    "maxima of groups in the product's epilogue": replace(TODAY, selection="epilogue"),
    "32 columns instead of 64": replace(TODAY, columns=32),
    "128 columns": replace(TODAY, columns=128),
    "512 columns": replace(TODAY, columns=512),
    "no scaling by a loss gradient of 1": replace(TODAY, scaled=False),
    "W_enc's gradient summed in W_enc's layout": replace(TODAY, transposed=False),
    "norm summed where gradients are written": replace(TODAY, norm_pass=False),
    "an Adam that does not write gradients back": replace(TODAY, written_back=False),
}
TOGETHER = replace(LEAN, selection="two stages")  # without a kernel of our own that is not there


def shape(k: int, fmt: str = "tf32", budgets: int | None = None) -> Step:
    """The shape of the page: Gemma-2 2B's width, 65,536 latents; every budget by default."""
    return Step(8192, 2304, 65536, k, budgets or k, fmt)


def tables(card: Card = H100) -> str:
    """Every table of the page, in Markdown."""
    of = {
        "Bytes and operations today": _bytes_table,
        "Milliseconds: today, and the floor": _time_table,
        "What each change would save by itself": _change_table,
        "Blocks of columns": _column_table,
        "Atomics, or stored suffix sums": _gradient_table,
        "Gradients summed inside Adam's pass": _fused_table,
    }
    return "\n\n".join(f"### {title}\n\n{table(card)}" for title, table in of.items())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.1f}"


def _ms(time: float) -> str:
    return f"{1e3 * time:.2f}"


def _bytes_table(card: Card) -> str:
    """By part: through memory, gathered through L2, and computed. bf16 where it differs."""
    rows = []
    for fmt in ("tf32", "bf16"):
        by_part = list(zip(*(parts(shape(k, fmt), TODAY) for k in BUDGETS), strict=True))
        for line in by_part if fmt == "tf32" else by_part[:3]:
            if memory(line[0], card):
                cells = [f"{_gb(memory(part, card))} / {_gb(part.gathered)}" for part in line]
                operations = " / ".join(f"{part.operations / 1e9:.0f}" for part in line)
                bf16 = " (bf16)" if fmt == "bf16" and line[0].name != WEIGHTS else ""
                rows.append([line[0].name + bf16, *cells, operations])
    head = [*(f"K={k}: GB memory / L2" for k in BUDGETS), "10⁹ operations"]
    return _table(["part", *head], rows)


def _time_table(card: Card) -> str:
    """By part with a TF32 product; the whole step with either."""
    rows = []
    for fmt, name in (("tf32", "TF32"), ("bf16", "bf16")):
        columns = [parts(shape(k, fmt), TODAY) for k in BUDGETS]
        columns += [floor(shape(k, fmt)) for k in BUDGETS]
        if fmt == "tf32":
            for line in list(zip(*columns, strict=True))[1:]:
                rows.append([line[0].name, *(_ms(seconds(part, card)) for part in line)])
        rows.append([f"**whole step, {name}**", *(_ms(total(column, card)) for column in columns)])
    head = [*(f"K={k}" for k in BUDGETS), *(f"floor, K={k}" for k in BUDGETS)]
    return _table(["part", *head], rows)


def _change_table(card: Card) -> str:
    steps = [shape(k) for k in BUDGETS] + [shape(64, "bf16")]

    def times(design: Design) -> list[float]:
        return [total(parts(step, design), card) for step in steps]

    def saved(design: Design, before: Design = TODAY) -> list[str]:
        pairs = zip(times(before), times(design), strict=True)
        return [_ms(then - now) for then, now in pairs]

    rows = [[name, *saved(design)] for name, design in CHANGES.items()]
    rows.append(["one sort for both gradients, not two", *saved(STORED, replace(STORED, sorts=2))])
    rows.append(["**two stages, and the last four**", *saved(TOGETHER)])
    rows.append(["the step that is left", *map(_ms, times(TOGETHER))])
    head = [*(f"K={k}" for k in BUDGETS), "K=64, bf16"]
    return _table(["milliseconds saved", *head], rows)


def _column_table(card: Card) -> str:
    rows = []
    for name, step, stored in (
        ("every budget, atomics", shape(64), False),
        ("8 budgets, stored", shape(64, budgets=8), True),
    ):
        for columns in (32, 64, 128, 256, 512):
            design = replace(TODAY, columns=columns, stored=stored)
            forward, backward, errors, gradient = loss_parts(step, design)
            gathering = [forward, backward] if stored else [forward, backward, gradient]
            per_block = 2 * _code_bytes(step, design)
            rows.append(
                [
                    f"{name}, {columns} columns",
                    f"{forward.live / 1e6:.0f} MB",
                    _gb(sum(memory(part, card) - part.streamed for part in gathering)),
                    _gb(per_block),
                    _ms(total([forward, backward, errors, gradient], card)),
                ]
            )
    head = ["slices in use", "GB, rows from memory", "GB, code and sums", "ms, loss"]
    return _table(["K=64", *head], rows)


def _gradient_table(card: Card) -> str:
    rows = []
    for name, budgets, design in (
        ("every budget, atomics, 64 columns", None, TODAY),
        ("every budget, atomics, 128 columns", None, replace(TODAY, columns=128)),
        ("every budget, stored", None, STORED),
        ("8 budgets, atomics, 64 columns", 8, TODAY),
        ("8 budgets, stored, segments by 128 columns", 8, STORED),
        ("8 budgets, stored, segments by 512 columns", 8, replace(STORED, segment_columns=512)),
        ("1 budget, stored", 1, STORED),
    ):
        steps = [shape(k, budgets=budgets) for k in BUDGETS]
        rows.append([name, *(_ms(total(loss_parts(step, design), card)) for step in steps)])
    return _table(["ms, loss with gradients", *(f"K={k}" for k in BUDGETS)], rows)


def _fused_table(card: Card) -> str:
    """Both gradients, what is done to them, and Adam; 8 budgets, segments by 128 columns."""
    lean = replace(LEAN, stored=True)
    ways = {
        "today": STORED,
        "gradients in memory, none of today's passes over them": lean,
        "summed inside Adam's pass, no clipping": replace(lean, fused=1),
        "summed for the norm, then again inside Adam's pass": replace(lean, fused=2),
    }
    names = (W_DEC, W_ENC, PASSES, NORM, ADAM)
    rows = []
    for name, design in ways.items():
        steps = [parts(shape(k, budgets=8), design) for k in BUDGETS]
        rows.append([name, *(_ms(total((p for p in s if p.name in names), card)) for s in steps)])
    return _table(["ms, gradients to weights", *(f"K={k}" for k in BUDGETS)], rows)


BEGIN, END = "<!-- floor: begin -->", "<!-- floor: end -->"


def write(page: Path = PAGE) -> None:
    """Puts the tables between the page's markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables()}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/kernels.md")
    if parser.parse_args().write:
        write()
    else:
        print(tables())


if __name__ == "__main__":
    main()
