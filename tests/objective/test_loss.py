"""The public loss, the sparse encoder and the identities they must satisfy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hsae_lens import OrderedCode, nested_loss
from hsae_lens.objective import encode
from hsae_lens.objective.budgets import (
    SCHEDULES,
    check_budget,
    powers_of_two,
    resolve_budgets,
    resolve_weights,
)
from hsae_lens.objective.encode import encode_topk, topk_in_two_stages
from hsae_lens.objective.kernels import IMPLEMENTATIONS, interface
from hsae_lens.objective.kernels.launches import Launch
from hsae_lens.objective.loss import decode_prefixes, nested_pass

KERNELS = [
    name
    for name, implementation in IMPLEMENTATIONS.items()
    if implementation.refuses(torch.device("cpu"), torch.float32) is None
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# What a program around the objective may have switched on; none of it is the objective's business.
SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}

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


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, not side by side in memory."""
    return torch.stack([tensor, torch.full_like(tensor, 7)], -1)[..., 0]


def nested_and_gradients(
    kernel: str, code: OrderedCode, W: torch.Tensor, b: torch.Tensor, x: torch.Tensor
) -> list[torch.Tensor]:
    """Everything the nested pass gives, with the gradient of each input."""
    code = OrderedCode(code.values.requires_grad_(), code.indices)
    leaves = [code.values, *(t.requires_grad_() for t in (W, b, x))]
    token_weights = strided(torch.linspace(0.5, 2, len(x), dtype=W.dtype, device="cpu"))
    out = nested_pass(code, W, b, x, token_weights=token_weights, kernel=kernel)
    return [*out, *torch.autograd.grad(out.loss, leaves)]


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=5)
@given(size=sizes, layout=st.sampled_from([torch.clone, strided]))
def test_the_nested_pass_is_the_same_in_any_surroundings(
    kernel: str, around: str, size: tuple[int, ...], layout: Callable[..., torch.Tensor]
) -> None:
    code, *exact = draw(size)
    inputs = [t.float() for t in (code.values, *exact)]
    single = [layout(t) for t in inputs]
    with SURROUNDINGS[around]():
        got = nested_and_gradients(
            kernel, OrderedCode(single[0], layout(code.indices)), *single[1:]
        )
    wide = [t.double() for t in inputs]
    want = nested_and_gradients("reference", OrderedCode(wide[0], code.indices), *wide[1:])
    for mine, right in zip(got, want, strict=True):
        assert mine.dtype in (torch.float32, torch.float64)
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)
    assert all(gradient.dtype == torch.float32 for gradient in got[3:])


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=5)
@given(
    size=sizes,
    layout=st.sampled_from([torch.clone, strided]),
    dtypes=st.tuples(*[st.sampled_from([torch.float32, torch.float64, torch.bfloat16])] * 4),
)
def test_the_sparse_encoder_is_the_same_in_any_surroundings(
    kernel: str,
    around: str,
    size: tuple[int, ...],
    layout: Callable[..., torch.Tensor],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Whatever the dtypes of x, b_enc, b_in and the scale, it computes in W_enc's."""
    code, W_dec, b_in, x = draw(size)
    b_enc = torch.linspace(40, 41, len(W_dec), dtype=torch.float64)  # all fire, in any precision
    W_enc, scale = W_dec.T.float(), torch.linspace(0.5, 1, len(W_dec), dtype=torch.float64)
    x, b_enc, b_in, scale = (t.to(d) for t, d in zip((x, b_enc, b_in, scale), dtypes, strict=True))
    leaves = [layout(t).requires_grad_() for t in (x, W_enc, b_enc, b_in)]
    weigh = torch.linspace(1, 2, code.k, dtype=torch.float32)
    with SURROUNDINGS[around]():
        got = encode_topk(*leaves, code.k, selection_scale=layout(scale), kernel=kernel)
        gradients = torch.autograd.grad((got.values * weigh).sum(), leaves)

    wide = [t.detach().float().requires_grad_() for t in leaves]
    pre = (wide[0] - wide[3]) @ wide[1] + wide[2]
    values = pre.gather(1, got.indices)
    assert got.values.dtype == torch.float32
    torch.testing.assert_close(got.values, values, rtol=2e-2 if around == "autocast" else 1e-5,
                               atol=0)  # fmt: skip
    if around != "autocast":
        best = (pre * scale.float()).topk(code.k).values
        torch.testing.assert_close((values * scale.float()[got.indices]), best)
    want = torch.autograd.grad((values * weigh).sum(), wide)
    for mine, right, leaf in zip(gradients, want, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        close = {"rtol": 1e-2, "atol": 1e-2} if leaf.dtype == torch.bfloat16 else {}
        torch.testing.assert_close(mine.float(), right, **(close or {"rtol": 1e-4, "atol": 1e-4}))


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


@pytest.mark.parametrize("kernel", ["reference", "scan", "bags"])
@pytest.mark.parametrize(("budgets", "weights"), [(None, None), ([2, 5], [0.0, 3.0])])
def test_gradients_in_float64(kernel: str, budgets: list[int] | None, weights: list | None) -> None:
    code, W, b, x = draw((3, 5, 4, 6, 1))
    leaves = [t.requires_grad_() for t in (code.values, W, b, x)]

    def loss(values: torch.Tensor, W: torch.Tensor, b: torch.Tensor, x: torch.Tensor):
        return nested_loss(OrderedCode(values, code.indices), W, b, x, budgets, weights,
                           kernel=kernel)  # fmt: skip

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kernel", ["reference", "scan", "bags"])
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
    monkeypatch.setattr("hsae_lens.objective.encode.CHUNK_BYTES", 32 * 4 * 7)
    parts = encode_topk(x, W, b, None, 4)
    assert torch.equal(whole.indices, parts.indices)
    torch.testing.assert_close(whole.values, parts.values)


@pytest.mark.parametrize("group", [1, 2, 4, 7, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choosing_in_two_stages_is_choosing(group: int, dtype: torch.dtype) -> None:
    """In bfloat16 many are equal: which of them is named may differ, but not how large they are."""
    torch.manual_seed(0)
    for tokens, d_sae, k in ((50, 64, 16), (1, 64, 64), (3, 65, 5), (0, 64, 2)):
        for pre in (torch.randn(tokens, d_sae), -torch.rand(tokens, d_sae).exp()):
            pre = pre.to(dtype)
            values, indices = topk_in_two_stages(pre, k, group)
            want = pre.topk(k)
            assert torch.equal(values, want.values)
            assert torch.equal(pre.gather(1, indices), values)
            assert all(len(set(row)) == k for row in indices.tolist())
            if dtype == torch.float32:
                assert torch.equal(indices, want.indices)


def test_a_card_may_choose_in_two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(50, 8), torch.randn(8, 32), torch.randn(32)
    want = encode_topk(x, W, b, None, 4)
    monkeypatch.setattr(encode, "launch_on", lambda *_: Launch(selection_group=4))
    monkeypatch.setattr(encode, "topk_in_two_stages", spy := Spy(topk_in_two_stages))
    got = encode_topk(x, W, b, None, 4)
    assert spy.called
    assert torch.equal(got.values, want.values)
    assert torch.equal(got.indices, want.indices)


class Spy:
    """A function that remembers whether it was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.called = function, False

    def __call__(self, *args: Any) -> Any:
        self.called = True
        return self.function(*args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_encoder_bias_has_the_same_gradient_where_it_must_be_deterministic(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, W = torch.randn(50, 8, dtype=dtype), torch.randn(8, 32, dtype=dtype)
    b, b_in = (torch.randn(n, dtype=dtype, requires_grad=True) for n in (32, 8))
    gradients = []
    for asked in ("0", "1"):
        monkeypatch.setenv("HSAE_DETERMINISTIC", asked)
        loss = encode_topk(x, W, b, b_in, 4, kernel="scan").values.square().sum()
        gradients.append(torch.autograd.grad(loss, [b, b_in]))
    for plain, sorted_ in zip(*gradients, strict=True):
        torch.testing.assert_close(sorted_, plain)


def test_autocast_rounds_the_product_and_not_the_bias() -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(30, 16), torch.randn(16, 40), 100 + torch.randn(40)
    with torch.autocast("cpu", torch.bfloat16):
        code = encode_topk(x, W, b, None, 4)
        want = (x @ W + b).topk(4)  # as SAELens encodes
    assert torch.equal(code.values, want.values)
    assert torch.equal(code.indices, want.indices)


def test_the_encoder_says_its_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        code = encode_topk(torch.empty(3, 16), torch.empty(16, 40), torch.empty(40), None, 4)
    assert code.values.shape == code.indices.shape == (3, 4)


@pytest.mark.parametrize("kernel", ["native", "bags", "scan"])
def test_a_compiled_program_gets_the_same_from_the_kernels_as_they_are(kernel: str) -> None:
    """torch.compile steps round them: it would take half a minute to trace their loops."""
    if kernel not in KERNELS:
        pytest.skip(f"no {kernel} here")
    torch.manual_seed(0)
    x, W, b = torch.randn(20, 16), torch.randn(40, 16, requires_grad=True), torch.zeros(16)

    def step(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        code = encode_topk(2 * x, W.T, torch.zeros(40), b, 4, kernel=kernel)
        return 2 * nested_loss(code, W, b, x, kernel=kernel) + W.square().sum()

    compiled = torch.compile(step, backend="eager")
    losses = [step(x, W, b), compiled(x, W, b), compiled(x, W, b)]
    gradients = [torch.autograd.grad(loss, W)[0] for loss in losses]
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert torch.equal(loss, losses[0])
        assert torch.equal(gradient, gradients[0])


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


@pytest.mark.parametrize("name", ["nested", "encode"])
def test_a_second_derivative_raises_instead_of_missing_a_term(name: str) -> None:
    code, W, b, x = draw((3, 4, 5, 6, 3))
    leaves = [t.requires_grad_() for t in (code.values, W, b, x)]
    if name == "nested":
        loss = nested_loss(code, W, b, x)
    else:
        leaves = [x, W, b]
        loss = encode_topk(x, W.T, W.new_zeros(len(W)), b, 4).values.sum()
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match="no second derivative.*to_dense"):
            (loss + gradient.square().sum()).backward(retain_graph=True)


@pytest.mark.parametrize("name", ["nested", "encode"])
def test_a_repeated_backward_notices_weights_changed_in_place(name: str) -> None:
    code, W, b, x = draw((3, 4, 5, 6, 3))
    W.requires_grad_()
    if name == "nested":
        loss = nested_loss(code, W, b, x)
    else:
        loss = encode_topk(x, W.T, W.new_zeros(len(W)), None, 4).values.sum()
    (first,) = torch.autograd.grad(loss, W, retain_graph=True)
    (second,) = torch.autograd.grad(loss, W, retain_graph=True)
    torch.testing.assert_close(first, second)
    with torch.no_grad():
        W.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, W)


def test_a_graph_that_was_freed_is_not_walked_again() -> None:
    code, W, b, x = draw((3, 4, 5, 6, 3))
    loss = nested_loss(code, W.requires_grad_(), b, x)
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_are_not_computed_where_nobody_can_ask_for_them(
    kernel: str, without: Callable[[], AbstractContextManager[Any]]
) -> None:
    W, b, x = torch.randn(2000, 64, requires_grad=True), torch.zeros(64), torch.randn(2, 64)
    code = OrderedCode.from_pre_activations(torch.randn(2, 2000), 2)
    with torch.profiler.profile(profile_memory=True) as profile, without():
        nested_loss(code, W, b, x, kernel=kernel)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < W.numel()  # a quarter of what its gradient takes


class NoFloat64(TorchDispatchMode):
    """As on mps: an operation that makes a float64 tensor fails."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
            raise TypeError(f"{func} made a float64 tensor")
        return out


@pytest.mark.parametrize("kernel", ["scan", "reference"])
def test_a_device_without_float64_never_sees_any(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert interface.exact_dtype(torch.device("mps")) == torch.float32
    assert interface.exact_dtype(torch.device("cuda", 1)) == torch.float64
    code, *exact = draw((3, 4, 5, 6, 3))
    W, b, x = (t.float().requires_grad_() for t in exact)
    code = OrderedCode(code.values.float(), code.indices)
    monkeypatch.setattr(interface, "WITHOUT_FLOAT64", ("mps", "cpu"))
    with NoFloat64():
        out = nested_pass(code, W, b, x, token_weights=torch.ones(3), kernel=kernel)
        out.loss.backward()
        values = encode_topk(x, W.T, b.new_zeros(len(W)), b, 4, kernel=kernel).values
        values.sum().backward()
    assert out.mse.dtype == torch.float32


def test_memory_does_not_hold_every_prefix() -> None:
    """The [B, K, d_in] tensor would be 1 GB here."""
    torch.manual_seed(0)
    pre, W, x = torch.randn(1024, 512), torch.randn(512, 1024), torch.randn(1024, 1024)
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


@pytest.mark.parametrize("budget", [0, 4, 2.0, True, "2", None])
def test_a_budget_outside_its_range_or_not_whole_is_refused_everywhere(budget: Any) -> None:
    pre, W = torch.randn(2, 3), torch.randn(5, 3)
    code = OrderedCode.from_pre_activations(pre, 3)
    for ask in (
        code.prefix,
        lambda k: OrderedCode.from_pre_activations(pre, k),
        lambda k: OrderedCode.from_activations(pre, k),
        lambda k: encode_topk(torch.randn(2, 5), W, torch.zeros(3), None, k),
        lambda k: check_budget(k, 3, "k"),
    ):
        with pytest.raises(ValueError, match=r"1\.\..*3|must be a whole number, got"):
            ask(budget)


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
    for name in SCHEDULES:
        weights = resolve_weights(name, range(1, 65))
        assert sum(weights) == pytest.approx(1)
        assert weights == sorted(weights, reverse=name not in ("linear", "square"))


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
    for latent in (-1, 6):
        wrong = OrderedCode(torch.ones(1, 2), torch.tensor([[1, latent]]))
        for kernel in KERNELS:
            with pytest.raises(IndexError, match=r"outside 0\.\.5"):
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
    for weights in (torch.ones(2), torch.ones(3, 1), torch.ones(3, device="meta")):
        with pytest.raises(ValueError, match="token_weights must be"):
            nested_pass(code, W, b, x, token_weights=weights)
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


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x", torch.zeros(3, 4)),
        ("x", torch.zeros(3, 5, dtype=torch.int64)),
        ("W_enc", torch.zeros(5, 10, dtype=torch.int64)),
        ("W_enc", torch.zeros(10)),
        ("b_enc", torch.zeros(9)),
        ("b_enc", torch.zeros(10, device="meta")),
        ("b_in", torch.zeros(1)),
        ("selection_scale", torch.ones(5)),
    ],
)
def test_an_encoder_whose_parts_do_not_fit(name: str, wrong: torch.Tensor) -> None:
    parts = {"x": torch.zeros(3, 5), "W_enc": torch.zeros(5, 10), "b_enc": torch.zeros(10),
             "b_in": torch.zeros(5), "selection_scale": torch.ones(10)}  # fmt: skip
    encode_topk(**parts, k=4)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        encode_topk(**(parts | {name: wrong}), k=4)


def test_the_encoder_takes_any_batch_axes() -> None:
    torch.manual_seed(0)
    x, W, b = torch.randn(2, 3, 5, requires_grad=True), torch.randn(5, 10), torch.zeros(10)
    code, flat = encode_topk(x, W, b, None, 4), encode_topk(x.reshape(6, 5), W, b, None, 4)
    assert torch.equal(code.indices.reshape(6, 4), flat.indices)
    (shaped,) = torch.autograd.grad(code.values.sum(), x)
    (plain,) = torch.autograd.grad(flat.values.sum(), x)
    torch.testing.assert_close(shaped, plain)
