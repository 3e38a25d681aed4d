"""Values refitted by least squares on the latents that were chosen."""

from __future__ import annotations

import torch

from hsae_lens.objective.ordered_code import OrderedCode

RIDGE = 1e-4  # of the mean squared norm of a token's decoder rows: latents may nearly coincide

CHUNK_ELEMENTS = 1 << 24  # of decoder rows that are gathered at a time


@torch.no_grad()
def refit_values(code: OrderedCode, W_dec: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The values with which a token's chosen latents come nearest to its activation.

    argmin_v ‖target − Σ_t v_t W_dec[i_t]‖² + λ‖v‖², token by token, λ being :data:`RIDGE` times
    the mean of the ‖W_dec[i_t]‖². Latents of value 0 are not in use and stay 0. In float32 at
    least; 2·k²·d_in + k³/3 operations a token, where decoding takes 2·k·d_in.

    Args:
        code: ``[..., k]``.
        W_dec: ``[d_sae, d_in]``.
        target: what decoder rows are to sum up to ``[..., d_in]``: the activation minus b_dec.

    Returns:
        ``[..., k]`` in the order of the code. They need neither fall nor be positive, and those of
        a prefix are other ones than those of the whole.
    """
    wide = torch.promote_types(code.values.dtype, torch.float32)
    rows, k, d_in = code.values.numel() // max(1, code.k), code.k, W_dec.shape[-1]
    size = max(1, CHUNK_ELEMENTS // (k * d_in))
    parts = zip(
        code.indices.reshape(rows, k).split(size),
        (code.values != 0).reshape(rows, k).split(size),
        target.reshape(rows, d_in).split(size),
        strict=True,
    )
    solved = [_solve(W_dec[i].to(wide), used, x.to(wide)) for i, used, x in parts]
    values = torch.cat(solved) if solved else code.values
    return values.to(code.values.dtype).view_as(code.values)


def _solve(directions: torch.Tensor, used: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Of directions ``[n, k, d_in]``, those in use ``[n, k]``, to the target ``[n, d_in]``."""
    directions = directions * used[..., None]
    gram = directions @ directions.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * norms.sum(-1) / used.sum(-1).clamp(min=1)
    # An unused latent is alone with its 1 on the diagonal and a 0 on the right.
    gram = gram + torch.diag_embed(torch.where(used, ridge[:, None], 1.0))
    return torch.linalg.solve(gram, (directions @ target[..., None]))[..., 0]
