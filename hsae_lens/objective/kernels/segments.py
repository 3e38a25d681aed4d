"""Sums over the entries of each latent, by a sort instead of atomics.

An entry is a place in a code: one token at one rank, number token·K + rank. Sorted by latent, the
entries of a latent are one segment, and its sum is taken in the order of tokens: the same bits
every time. Both weight matrices' gradients are such sums over one code, so the sort is kept for the
second of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Segments(NamedTuple):
    """The entries of a code ``[B, K]``, sorted by latent.

    entries: int64 ``[B·K]``.
    offsets: int64 ``[d_sae + 1]``: latent i has entries[offsets[i]:offsets[i + 1]].
    """

    entries: torch.Tensor
    offsets: torch.Tensor

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """What stands at each place ``[B, K]``, in the order of the entries ``[B·K]``."""
        return x.reshape(-1)[self.entries]


_kept: dict[torch.device, tuple[torch.Tensor, int, Segments]] = {}


def segments_of(indices: torch.Tensor, d_sae: int) -> Segments:
    """The segments of a code's latents, int64 ``[B, K]``; without waiting for a GPU.

    They are kept for :func:`segments_again`, until the next code on the device.
    """
    segments = _sort(indices, d_sae)
    if not indices.is_inference():  # whose changes are not counted
        _kept[indices.device] = indices, indices._version, segments
    return segments


def segments_again(indices: torch.Tensor, d_sae: int) -> Segments:
    """The segments that were found last, if of the same memory and not written to since; or anew.

    For the second gradient of a step, whose code autograd kept. The first one sorts in any case,
    because not every writing is seen: that of a CUDA graph is not, nor what goes through ``.data``.
    """
    if indices.is_cuda and torch.cuda.is_current_stream_capturing():
        return _sort(indices, d_sae)
    if indices.device in _kept and not indices.is_inference():
        kept, version, segments = _kept[indices.device]
        if (
            indices.data_ptr() == kept.data_ptr()
            and (indices.shape, indices.stride()) == (kept.shape, kept.stride())
            and indices._version == version
            and len(segments.offsets) == d_sae + 1
        ):
            return segments
    return segments_of(indices, d_sae)


def _sort(indices: torch.Tensor, d_sae: int) -> Segments:
    latents, entries = indices.reshape(-1).to(torch.int32).sort(stable=True)
    bounds = torch.arange(d_sae + 1, device=indices.device, dtype=torch.int32)
    return Segments(entries, torch.searchsorted(latents, bounds))


def segment_sums(
    rows: torch.Tensor, row_of_entry: torch.Tensor, coefficients: torch.Tensor, s: Segments
) -> torch.Tensor:
    """Σ coefficient · row over each latent's entries: ``[d_sae, width]``.

    Args:
        rows: ``[n, width]``.
        row_of_entry: int64 ``[B·K]``, in the order of the entries (:meth:`Segments.take`).
        coefficients: ``[B·K]``, likewise, in the dtype of rows.
    """
    return torch.nn.functional.embedding_bag(
        row_of_entry,
        rows,
        s.offsets,
        mode="sum",
        per_sample_weights=coefficients,
        include_last_offset=True,
    )


def encoder_grad(
    d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
) -> torch.Tensor:
    """What :meth:`Implementation.encoder_grad` returns, on a CPU or CUDA, in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    segments = segments_again(indices, d_sae)
    tokens = segments.entries // indices.shape[1]
    sums = segment_sums(x.to(wide), tokens, segments.take(d_pre.to(wide)), segments)
    return sums.T.to(x.dtype).contiguous()
