"""Pre-activations to an ordered code, with a backward pass that only visits selected latents."""

from __future__ import annotations

from typing import Any

import torch

from hsae_lens.objective import kernels
from hsae_lens.objective.budgets import check_k
from hsae_lens.objective.differentiable_once import differentiable_once
from hsae_lens.objective.kernels import Implementation
from hsae_lens.objective.ordered_code import OrderedCode

# Bytes of pre-activations kept at once: large enough for an efficient matrix product, small enough
# that the [B, d_sae] tensor never exists.
CHUNK_BYTES = 64 << 20


def encode_topk(
    x: torch.Tensor,
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    b_in: torch.Tensor | None,
    k: int,
    *,
    selection_scale: torch.Tensor | None = None,
    kernel: str = "auto",
) -> OrderedCode:
    """TopK of ReLU((x − b_in) W_enc + b_enc), in descending order, for training.

    Everything is computed in W_enc's dtype, to which the others are cast; autocast applies to the
    matrix product alone. Only the K selected pre-activations of a token have a gradient, so the
    backward pass is a segment sum over latents instead of a dense product, and the path through
    ``b_in`` collapses to −W_enc · Σ_tokens d_pre.

    Args:
        x: ``[..., d_in]``.  W_enc: ``[d_in, d_sae]``.  b_enc: ``[d_sae]``.
        b_in: ``[d_in]`` subtracted from x (b_dec with ``apply_b_dec_to_input``), or None.
        k: how many latents to keep.
        selection_scale: ``[d_sae]`` positive factors (decoder norms) applied for *choosing and
            ordering* only. The values stay unscaled: what multiplies a decoder row. No gradient
            flows to the factors: in z·norm/norm it is zero.
        kernel: forces an implementation for the backward pass.

    Returns:
        The code ``[..., k]``; values are differentiable once in x, W_enc, b_enc and b_in.

    Raises:
        ValueError: for a k, shapes, dtypes or devices that do not fit together.
    """
    if W_enc.ndim != 2 or not W_enc.is_floating_point():
        raise ValueError(
            f"W_enc must be [d_in, d_sae] and floating, got {tuple(W_enc.shape)} of {W_enc.dtype}."
        )
    d_in, d_sae = W_enc.shape
    k = check_k(k, d_sae)
    implementation = kernels.select(kernel, W_enc.device, W_enc.dtype)
    values, indices = _EncodeTopK.apply(
        _like("x", x, (*x.shape[:-1], d_in), W_enc).reshape(-1, d_in),
        W_enc,
        _like("b_enc", b_enc, (d_sae,), W_enc),
        None if b_in is None else _like("b_in", b_in, (d_in,), W_enc),
        k,
        None
        if selection_scale is None
        else _like("selection_scale", selection_scale, (d_sae,), W_enc),
        implementation,
    )
    shape = (*x.shape[:-1], k)
    return OrderedCode(values.reshape(shape), indices.reshape(shape))


def _like(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], W_enc: torch.Tensor
) -> torch.Tensor:
    """The tensor in W_enc's dtype, if it has this shape and is where W_enc is."""
    if tensor.shape != shape or tensor.device != W_enc.device or not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be {shape}, floating and on {W_enc.device} to match W_enc "
            f"{tuple(W_enc.shape)}, got {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device}."
        )
    return tensor.to(W_enc.dtype)


class _EncodeTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        W_enc: torch.Tensor,
        b_enc: torch.Tensor,
        b_in: torch.Tensor | None,
        k: int,
        selection_scale: torch.Tensor | None,
        implementation: Implementation,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x if b_in is None else x - b_in
        values, indices = _select(centred, W_enc, b_enc, k, selection_scale)
        if selection_scale is not None:
            values = values / selection_scale[indices]
        values = values.relu()
        ctx.save_for_backward(centred, W_enc, indices, values > 0)
        ctx.implementation = implementation
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_values: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        centred, W_enc, indices, fired = ctx.saved_tensors
        d_sae = W_enc.shape[1]
        d_pre = d_values * fired
        needs_x, needs_W, needs_b_enc, needs_b_in = ctx.needs_input_grad[:4]
        d_W = d_b_enc = d_b_in = d_x = None
        if needs_W:
            d_W = ctx.implementation.encoder_grad(d_pre, indices, centred, d_sae)
        if needs_b_enc or needs_b_in:
            wide = torch.promote_types(d_pre.dtype, torch.float32)
            d_b_enc = torch.zeros(d_sae, dtype=wide, device=d_pre.device)
            d_b_enc.index_add_(0, indices.reshape(-1), d_pre.reshape(-1).to(wide))
            d_b_enc = d_b_enc.to(d_pre.dtype)
        if needs_b_in:
            d_b_in = -(W_enc @ d_b_enc)
        if needs_x:
            d_x = torch.nn.functional.embedding_bag(
                indices, W_enc.T.contiguous(), per_sample_weights=d_pre, mode="sum"
            )
        return d_x, d_W, d_b_enc if needs_b_enc else None, d_b_in, None, None, None


def _select(
    centred: torch.Tensor,
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    k: int,
    selection_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (scaled) pre-activations of each token, a chunk of tokens at a time."""
    rows = max(1, CHUNK_BYTES // (W_enc.shape[1] * centred.element_size()))
    values, indices = [], []
    for chunk in centred.split(rows):
        pre = chunk @ W_enc + b_enc
        if selection_scale is not None:
            pre *= selection_scale
        top = pre.topk(k, dim=-1, sorted=True)
        values.append(top.values)
        indices.append(top.indices)
    return torch.cat(values).to(W_enc.dtype), torch.cat(indices)
