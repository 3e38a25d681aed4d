"""The plain PyTorch path for CUDA: what it reads and writes, and that it waits for nothing.

Its numbers are in test_kernels.py. Here it runs on the meta device, which has no numbers:
whatever would wait for a number fails there, and a card's problem costs nothing.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hsae_lens.objective import encode_topk, kernels, nested_loss
from hsae_lens.objective.kernels import IMPLEMENTATIONS, NestedProblem, bags, segments

META = torch.device("meta")


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, as if nothing stayed in a cache between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        results = out if isinstance(out, tuple | list) else (out,)
        tensors = [x for x in results if isinstance(x, torch.Tensor)]
        assert all(x.device == META for x in tensors), f"{name} copies from the CPU, and waits"
        if func.is_view or name.startswith(("empty", "new_empty")):
            return out
        read = [x for x in args if isinstance(x, torch.Tensor)]
        self.bytes += sum(map(size, tensors[:1]))
        if name == "_embedding_bag_forward_only":
            rows, indices = args[:2]
            self.bytes += len(indices) * rows.shape[1] * rows.element_size()
        elif name == "_embedding_bag_per_sample_weights_backward":
            grad, _, indices = args[:3]
            self.bytes += 2 * len(indices) * grad.shape[1] * grad.element_size()
        else:
            self.bytes += sum(map(size, read))
        return out


def size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def on_meta(n_tokens: int, d_in: int, d_sae: int, budgets: list[int], weighted: bool) -> Any:
    k = budgets[-1]
    weights = [float(j) if weighted else 1.0 for j in budgets]
    return NestedProblem(
        torch.empty(n_tokens, k, device=META),
        torch.empty(n_tokens, k, device=META, dtype=torch.int64),
        torch.empty(d_sae, d_in, device=META),
        torch.empty(d_in, device=META),
        torch.empty(n_tokens, d_in, device=META),
        budgets,
        [w / sum(weights) for w in weights],
        torch.empty(n_tokens, device=META) if weighted else None,
    )


@pytest.mark.parametrize("k", [32, 64, 128])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_card_reads_and_writes_at_most_three_times_what_fused_kernels_do(
    k: int, weighted: bool
) -> None:
    n_tokens, d_in, d_sae = 8192, 2304, 65536
    p = on_meta(n_tokens, d_in, d_sae, list(range(1, k + 1)), weighted)
    bags.nested(p, True)  # looks up what is kept from then on
    with Traffic() as traffic:
        bags.nested(p, True)
    # A row is read forwards and backwards, a gradient row is read and written; then what any of
    # them must touch: x, residual, suffix sums, W_dec's gradient, made and cleared.
    fused = 4 * (4 * n_tokens * k * d_in + 3 * n_tokens * d_in + 2 * d_sae * d_in)
    assert traffic.bytes <= 3 * fused
    print(f"{traffic.bytes / (4 * n_tokens * k * d_in):.2f} passes, {traffic.bytes / fused:.2f}")


def test_few_budgets_cost_little_more_than_reading_the_rows() -> None:
    p = on_meta(8192, 2304, 65536, [8, 128], False)
    bags.nested(p, True)
    with Traffic() as traffic:
        bags.nested(p, True)
    assert traffic.bytes <= 4.6 * 4 * 8192 * 128 * 2304


@pytest.mark.parametrize("grad", [False, True])
def test_what_it_holds_does_not_grow_with_k(grad: bool) -> None:
    """The largest tensor that it makes beside the problem's own."""

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not func.is_view:
                self.bytes = max(self.bytes, size(out))
            return out

    for k in (32, 256):
        p = on_meta(4096, 2304, 16384, list(range(1, k + 1)), False)
        with Largest() as largest:
            bags.nested(p, grad)
        assert largest.bytes <= max(bags.WORKSPACE_BYTES, size(p.W_dec))


def test_a_sort_is_kept_for_the_second_gradient_and_only_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(9, (20, 3), generator=generator)

    def loop(indices: torch.Tensor, d_sae: int) -> list[list[int]]:
        flat = indices.flatten().tolist()
        return [[e for e, latent in enumerate(flat) if latent == i] for i in range(d_sae)]

    def by_latent(found: segments.Segments) -> list[list[int]]:
        return [found.entries[a:b].tolist() for a, b in itertools.pairwise(found.offsets)]

    first = segments.segments_of(indices, 9)
    assert by_latent(first) == loop(indices, 9)
    assert segments.segments_again(indices.view(60).view(20, 3), 9) is first
    # A shorter code, another dictionary, other memory, latents that were written to: sorted anew.
    others = [(indices[:, :2].contiguous(), 9), (indices, 11), (indices.clone().fill_(1), 9)]
    for other, d_sae in others:
        assert by_latent(segments.segments_again(other, d_sae)) == loop(other, d_sae)
    indices[0, 0] = (indices[0, 0] + 1) % 9
    assert by_latent(segments.segments_again(indices, 9)) == loop(indices, 9)
    with torch.inference_mode():
        frozen = torch.randint(9, (20, 3), generator=generator)
        for find in (segments.segments_of, segments.segments_again):
            assert by_latent(find(frozen, 9)) == loop(frozen, 9)
    # The first of a step's sorts trusts nobody: a CUDA graph writes unseen.
    segments.segments_of(indices, 9)
    indices.numpy()[0, 0] = (indices[0, 0] + 1) % 9
    assert by_latent(segments.segments_of(indices, 9)) == loop(indices, 9)


@pytest.mark.parametrize("kernel", ["triton", "bags"])
def test_a_step_sorts_once(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := IMPLEMENTATIONS[kernel].refuses(torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    sorted_ = []
    really = segments._sort
    monkeypatch.setattr(segments, "_sort", lambda *args: sorted_.append(1) or really(*args))
    torch.manual_seed(0)
    x, W, b = torch.randn(5, 8), torch.randn(20, 8, requires_grad=True), torch.zeros(8)
    kernels.select(kernel, x.device, x.dtype, 8, 4)  # its trial sorts too
    sorted_.clear()
    for steps in (1, 2):
        code = encode_topk(x, W.T, torch.zeros(20), b, 4, kernel=kernel)
        nested_loss(code, W, b, x, kernel=kernel).backward()
        assert len(sorted_) == steps


def test_running_sums_are_the_same_where_they_must_be_deterministic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(7, 5, 3, dtype=torch.float64)
    want = torch.stack([x[: n + 1].sum(0) for n in range(7)])
    for asked in ("0", "1"):
        monkeypatch.setenv("HSAE_DETERMINISTIC", asked)
        torch.testing.assert_close(bags._running_sums_(x.clone()), want)


def test_slices_cover_every_column_once() -> None:
    for d_in, rows in ((577, 10**6), (16, 1), (2304, 8192 * 128), (1, 1)):
        columns = [n for part in bags._slices(d_in, rows) for n in range(d_in)[part]]
        assert columns == list(range(d_in))
        widths = {part.stop - part.start for part in bags._slices(d_in, rows)}
        assert max(widths) <= max(16, math.ceil(bags.WORKSPACE_BYTES / (4 * rows)))
