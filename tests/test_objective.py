"""The public loss, the sparse encoder and the identities they must satisfy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsae_lens import OrderedCode, nested_loss
from hsae_lens.budgets import powers_of_two, resolve_budgets, resolve_weights
from hsae_lens.encode import encode_topk
from hsae_lens.nested import decode_prefixes, nested_pass

sizes = st.tuples(
    st.integers(1, 6),  # tokens
    st.integers(1, 9),  # k
    st.integers(1, 7),  # d_in
    st.integers(0, 6),  # d_sae - k
    st.integers(0, 2**31),  # seed
)


def draw(size: tuple[int, ...]) -> tuple[OrderedCode, torch.Tensor, torch.Tensor, torch.Tensor]:
    n_tokens, k, d_in, more, seed = size
    torch.manual_seed(seed)
    pre = torch.randn(n_tokens, k + more, dtype=torch.float64)
    code = OrderedCode.from_pre_activations(pre, k)
    W, b = torch.randn(k + more, d_in, dtype=torch.float64), torch.randn(d_in, dtype=torch.float64)
    return code, W, b, torch.randn(n_tokens, d_in, dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(sizes)
def test_prefix_is_plain_topk(size: tuple[int, ...]) -> None:
    n_tokens, k, _, more, seed = size
    torch.manual_seed(seed)
    pre = torch.randn(n_tokens, k + more)
    for j in range(1, k + 1):
        values, indices = pre.topk(j)
        dense = torch.zeros_like(pre).scatter(1, indices, values.relu())
        code = OrderedCode.from_pre_activations(pre, k).prefix(j)
        assert torch.equal(code.to_dense(k + more), dense)
        assert torch.equal(code.to_sparse(k + more).to_dense(), dense)


@settings(deadline=None, max_examples=50)
@given(sizes, st.data())
def test_stacked_budgets_equal_each_budget_alone(
    size: tuple[int, ...], data: st.DataObject
) -> None:
    code, W, b, x = draw(size)
    budgets = sorted(data.draw(st.sets(st.integers(1, code.k), min_size=1)))
    together = nested_pass(code, W, b, x, budgets)
    stack = decode_prefixes(code, W, b, budgets)
    for n, j in enumerate(budgets):
        alone = code.prefix(j).to_dense(W.shape[0]) @ W + b
        torch.testing.assert_close(stack[n], alone)
        torch.testing.assert_close(together.mse[n], (x - alone).pow(2).sum(-1).mean())
        torch.testing.assert_close(nested_loss(code, W, b, x, [j]), together.mse[n])
    torch.testing.assert_close(together.loss, together.mse.mean())
    torch.testing.assert_close(together.reconstruction, stack[-1])


@settings(deadline=None, max_examples=25)
@given(sizes)
def test_a_zero_tail_changes_nothing(size: tuple[int, ...]) -> None:
    code, W, b, x = draw(size)
    tail = torch.zeros(len(x), 2, dtype=torch.int64) + torch.tensor([len(W), len(W) + 1])
    longer = OrderedCode(
        torch.cat([code.values, code.values.new_zeros(len(x), 2)], 1),
        torch.cat([code.indices, tail], 1),
    )
    wider = torch.cat([W, torch.randn(2, W.shape[1], dtype=W.dtype)])
    before, after = nested_pass(code, W, b, x), nested_pass(longer, wider, b, x)
    torch.testing.assert_close(after.mse[: code.k], before.mse)
    torch.testing.assert_close(after.mse[code.k :], before.mse[-1].expand(2))


@pytest.mark.parametrize("kernel", ["reference", "scan"])
@pytest.mark.parametrize(("budgets", "weights"), [(None, None), ([2, 5], [0.0, 3.0])])
def test_gradients_in_float64(kernel: str, budgets: list[int] | None, weights: list | None) -> None:
    code, W, b, x = draw((3, 5, 4, 6, 1))
    leaves = [t.requires_grad_() for t in (code.values, W, b, x)]

    def loss(values: torch.Tensor, W: torch.Tensor, b: torch.Tensor, x: torch.Tensor):
        return nested_loss(OrderedCode(values, code.indices), W, b, x, budgets, weights,
                           kernel=kernel)  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kernel", ["reference", "scan"])
def test_sparse_encoder_gradients_in_float64(kernel: str, scaled: bool) -> None:
    torch.manual_seed(0)
    x, W, b, b_in = (torch.randn(*s, dtype=torch.float64) for s in ((4, 6), (6, 11), (11,), (6,)))
    scale = torch.rand(11, dtype=torch.float64) + 0.5 if scaled else None
    leaves = [t.requires_grad_() for t in (x, W, b, b_in)]

    def values(*leaves: torch.Tensor) -> torch.Tensor:
        return encode_topk(*leaves, 5, selection_scale=scale, kernel=kernel).values

    assert torch.autograd.gradcheck(values, leaves)
    code = encode_topk(*leaves, 5, selection_scale=scale)
    pre = (x - b_in) @ W + b
    by = pre if scale is None else pre * scale
    torch.testing.assert_close(code.indices, by.topk(5).indices)
    torch.testing.assert_close(code.values, pre.gather(1, code.indices).relu())


def test_chunked_encoding_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(50, 8), torch.randn(8, 32), torch.randn(32)
    whole = encode_topk(x, W, b, None, 4)
    monkeypatch.setattr("hsae_lens.encode.CHUNK_BYTES", 32 * 4 * 7)
    parts = encode_topk(x, W, b, None, 4)
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.values, parts.values)


def test_batch_axes_and_low_precision() -> None:
    code, W, b, x = draw((6, 5, 4, 6, 2))
    flat = nested_loss(code, W, b, x)
    shaped = OrderedCode(code.values.reshape(2, 3, 5), code.indices.reshape(2, 3, 5))
    torch.testing.assert_close(nested_loss(shaped, W, b, x.reshape(2, 3, 4)), flat)
    half = OrderedCode(code.values.bfloat16(), code.indices)
    low = nested_loss(half, W.bfloat16(), b.bfloat16(), x.bfloat16())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), flat, rtol=2e-2, atol=0)


def test_the_loss_can_be_scaled_and_differentiated_repeatedly() -> None:
    code, W, b, x = draw((3, 4, 5, 6, 3))
    (whole,) = torch.autograd.grad(nested_loss(code, W.requires_grad_(), b, x), W)
    loss = 0.5 * nested_loss(code, W, b, x)
    (half,) = torch.autograd.grad(loss, W, retain_graph=True)
    (again,) = torch.autograd.grad(loss, W)
    torch.testing.assert_close(2 * half, whole)
    torch.testing.assert_close(again, half)


def test_memory_does_not_hold_every_prefix() -> None:
    """The [B, K, d_in] tensor would be 2 GB here."""
    torch.manual_seed(0)
    pre, W, x = torch.randn(2048, 512), torch.randn(512, 1024), torch.randn(2048, 1024)
    code = OrderedCode.from_pre_activations(pre, 256)
    for kernel in ("auto", "scan"):
        with torch.profiler.profile(profile_memory=True) as profile:
            nested_loss(code, W.requires_grad_(), torch.zeros(1024), x, kernel=kernel).backward()
        largest = max(event.self_cpu_memory_usage for event in profile.events())
        assert largest < 64 << 20


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ([], "budgets is empty"),
        ([2, 1], r"ascending without repeats.*Did you mean \[1, 2\]"),
        ([1, 1], "ascending without repeats"),
        ([0, 1], r"\[0\] are outside 1..k=4"),
        ([5], "outside 1..k=4"),
        ([1.5], "whole numbers"),
    ],
)
def test_bad_budgets(budgets: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_budgets(budgets, 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("unifrom", "Did you mean 'uniform'"),
        ([1.0], "1 numbers for 2 budgets"),
        ([1.0, -1.0], "not negative"),
        ([1.0, float("nan")], "finite"),
        ([0.0, 0.0], "all zero"),
    ],
)
def test_bad_weights(weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_weights(weights, [1, 2])


def test_weights_sum_to_one() -> None:
    assert resolve_weights([1, 3], [1, 2]) == [0.25, 0.75]
    for name in ("uniform", "inverse", "inverse_sqrt"):
        weights = resolve_weights(name, range(1, 65))
        assert sum(weights) == pytest.approx(1)
        assert weights == sorted(weights, reverse=True)


def test_powers_of_two() -> None:
    assert powers_of_two(1) == [1]
    assert powers_of_two(64) == [1, 2, 4, 8, 16, 32, 64]
    assert powers_of_two(50) == [1, 2, 4, 8, 16, 32, 50]


def test_an_empty_batch_and_latents_that_do_not_exist() -> None:
    W, b = torch.randn(6, 5, requires_grad=True), torch.zeros(5)
    empty = OrderedCode(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    loss = nested_loss(empty, W, b, torch.zeros(0, 5))
    loss.backward()
    assert loss == 0
    assert not W.grad.any()
    wrong = OrderedCode(torch.ones(1, 2), torch.tensor([[1, 6]]))
    for kernel in ("auto", "scan", "reference"):
        with pytest.raises(IndexError):
            nested_loss(wrong, W, b, torch.zeros(1, 5), kernel=kernel)


def test_shapes_that_do_not_fit() -> None:
    code, W, b, x = draw((3, 4, 5, 6, 3))
    with pytest.raises(ValueError, match="target must be"):
        nested_loss(code, W, b, x[:2])
    with pytest.raises(ValueError, match="b_dec must be"):
        nested_loss(code, W, b[:2], x)
    with pytest.raises(ValueError, match="has only 3 rows"):
        nested_loss(code, W[:3], b, x)
    with pytest.raises(ValueError, match="one floating dtype"):
        nested_loss(code, W, b.float(), x)
    with pytest.raises(ValueError, match="Budget 5 is outside"):
        code.prefix(5)
    with pytest.raises(ValueError, match="one shape"):
        OrderedCode(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="int64"):
        OrderedCode(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="k must be in"):
        OrderedCode.from_pre_activations(torch.zeros(2, 3), 4)
    with pytest.raises(ValueError, match="k must be in"):
        encode_topk(x, W.T, torch.zeros(10).double(), None, 11)
