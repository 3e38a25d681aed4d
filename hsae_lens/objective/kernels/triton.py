"""The Triton implementation's entry in the table; imports Triton only when it is used."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Any

import torch

from hsae_lens.objective.kernels.interface import Implementation, NestedProblem, NestedSolution
from hsae_lens.objective.kernels.launches import Launch, launch_on

DTYPES = (torch.float32, torch.bfloat16)


def launched(launch: Launch | None = None) -> Implementation:
    """The implementation, always launched in one way; None: as the table has it for the shape."""

    def solve(p: NestedProblem, needs_grad: bool) -> NestedSolution:
        from hsae_lens.objective.kernels import triton_kernels

        how = launch or launch_on(
            p.W_dec.device, p.W_dec.dtype, p.W_dec.shape[1], p.values.shape[1]
        )
        with _current(p.values.device):
            return triton_kernels.nested(p, needs_grad, how)

    def reduce(
        d_pre: torch.Tensor, indices: torch.Tensor, x: torch.Tensor, d_sae: int
    ) -> torch.Tensor:
        from hsae_lens.objective.kernels import triton_kernels

        how = launch or launch_on(x.device, x.dtype, x.shape[1], d_pre.shape[1])
        with _current(x.device):
            return triton_kernels.encoder_grad(d_pre, indices, x, d_sae, how)

    return Implementation(
        name="triton",
        summary="fused Triton kernels, any K, d_in and batch",
        solve=solve,
        reduce=reduce,
        refuses=_refuses,
        launch=launch_on,
        launched=launched,
    )


def _current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors' is. (Not run on two GPUs.)"""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"runs on CUDA, not on {device.type}"
    if dtype not in DTYPES:
        return f"is for float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton (pip install triton)"
    return None


IMPLEMENTATION = launched()
