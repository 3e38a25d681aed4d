"""Pre-activations to an ordered code, with a backward pass that only visits selected latents."""

from __future__ import annotations

from typing import Any

import torch

from hsae_lens.objective import kernels
from hsae_lens.objective.budgets import check_k
from hsae_lens.objective.differentiable_once import differentiable_once
from hsae_lens.objective.kernels import Implementation
from hsae_lens.objective.kernels.interface import deterministic
from hsae_lens.objective.kernels.launches import launch_on
from hsae_lens.objective.kernels.segments import segment_sums, segments_again
from hsae_lens.objective.ordered_code import OrderedCode

# Bytes of pre-activations kept at once: large enough for an efficient matrix product, small enough
# that the [B, d_sae] tensor never exists. A GPU reads W_enc anew for each chunk (docs/kernels.md).
CHUNK_BYTES = 64 << 20
CHUNK_BYTES_ON_CUDA = 512 << 20


@torch.compiler.disable  # kernels run as they are: tracing their loops takes half a minute
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
    implementation = kernels.select(kernel, W_enc.device, W_enc.dtype, d_in, k)
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
            d_b_enc = _sums_by_latent(d_pre.to(wide), indices, d_sae).to(d_pre.dtype)
        if needs_b_in:
            d_b_in = -(W_enc @ d_b_enc)
        if needs_x:
            d_x = torch.nn.functional.embedding_bag(
                indices, W_enc.T.contiguous(), per_sample_weights=d_pre, mode="sum"
            )
        return d_x, d_W, d_b_enc if needs_b_enc else None, d_b_in, None, None, None


def _sums_by_latent(values: torch.Tensor, indices: torch.Tensor, d_sae: int) -> torch.Tensor:
    if deterministic():  # index_add_ is, on CUDA, only where torch's own switch says so
        segments = segments_again(indices, d_sae)
        ones = torch.ones_like(values).reshape(-1)
        return segment_sums(values.reshape(-1, 1), segments.entries, ones, segments)[:, 0]
    sums = torch.zeros(d_sae, dtype=values.dtype, device=values.device)
    return sums.index_add_(0, indices.reshape(-1), values.reshape(-1))


def _select(
    centred: torch.Tensor,
    W_enc: torch.Tensor,
    b_enc: torch.Tensor,
    k: int,
    selection_scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest (scaled) pre-activations of each token, a chunk of tokens at a time.

    Weights are scaled instead of pre-activations, of which there are more, and the bias is the
    product's own: nothing passes over ``[B, d_sae]`` between the product and the choice. (Autocast
    would round the bias, which is therefore added to the product.)
    """
    if selection_scale is not None:
        W_enc, b_enc = W_enc * selection_scale, b_enc * selection_scale
    dtype, device = W_enc.dtype, W_enc.device
    autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(
        device.type
    )
    if autocast and dtype == torch.float32:
        W_enc = W_enc.to(torch.get_autocast_dtype(device.type))  # once, not for every chunk
    size = CHUNK_BYTES_ON_CUDA if centred.is_cuda else CHUNK_BYTES
    rows = max(1, size // (W_enc.shape[1] * centred.element_size()))
    group = launch_on(device, dtype, len(W_enc), k).selection_group
    values, indices = [], []
    for chunk in centred.split(rows):
        pre = chunk @ W_enc + b_enc if autocast else torch.addmm(b_enc, chunk, W_enc)
        chosen = topk_in_two_stages(pre, k, group) if group else pre.topk(k, dim=-1)
        values.append(chosen[0])
        indices.append(chosen[1])
    return torch.cat(values).to(dtype), torch.cat(indices)


def topk_in_two_stages(pre: torch.Tensor, k: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``pre.topk(k)`` of ``[B, d_sae]``, by way of the k groups with the largest maxima.

    The k largest are among them: whatever is in another group is no larger than its maximum, and so
    no larger than the k maxima that were chosen before it. Values are those of ``topk``; of equal
    ones it may name others. One pass reads everything, where ``topk`` takes several.

    Where there are not k whole groups, it is ``topk`` itself.
    """
    tokens, d_sae = pre.shape
    if d_sae % group or d_sae // group < k:
        whole = pre.topk(k, dim=-1)
        return whole.values, whole.indices
    groups = pre.view(tokens, d_sae // group, group)
    best = groups.amax(-1).topk(k, dim=-1, sorted=False).indices
    candidates = groups.gather(1, best[:, :, None].expand(-1, -1, group))
    values, places = candidates.reshape(tokens, k * group).topk(k, dim=-1)
    return values, best.gather(1, places // group) * group + places % group
