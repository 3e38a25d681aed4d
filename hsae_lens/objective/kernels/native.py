"""The CPU implementation: a small C file, compiled once for this machine with its C compiler.

As Triton and torch.compile do, the kernel is built at first use (about a second) and kept in a
cache folder (``HSAE_CACHE_DIR``, else the platform's user cache), with a checksum: one that is
damaged, or that another user may have written, is not loaded but built again. Where there is no
compiler the plain PyTorch scan is used, and :func:`hsae_lens.objective.kernels.explain` says so.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from hsae_lens._util.paths import cache_dir
from hsae_lens.objective.kernels.interface import Implementation, NestedProblem, NestedSolution
from hsae_lens.objective.kernels.segments import encoder_grad

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.c")
# Sums may be reordered (that is what vectorising them means); NaN and infinity stay themselves.
FLAGS = [
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-ffp-contract=fast",
    "-shared",
    "-fPIC",
]


class BuildError(RuntimeError):
    """The C compiler is missing or refused the kernel; the message says which."""


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if name and shutil.which(name):
            return name
    raise BuildError("found no C compiler (install gcc or clang, or point CC at one)")


def _machine() -> str:
    """Names this processor: -march=native code must not be shared with another kind."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        return "\n".join(x for x in lines if x.startswith(("model name", "flags", "Features")))
    return platform.platform() + platform.processor()


def _key(compiler: str) -> str:
    parts = [SOURCE.read_bytes(), *(x.encode() for x in (" ".join(FLAGS), compiler, _machine()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = _compiler()
    name = f"native-{_key(compiler)}.so"
    folder = cache_dir("kernels")
    if _is_ours(folder):
        if _others_may_write(folder):
            folder.chmod(0o700)
        if not _is_whole(folder / name):
            _build(compiler, folder / name)
        return _loaded(folder / name)
    logger.warning(
        "%s belongs to another user: the kernel in it is not run but built anew in every process. "
        "Set HSAE_CACHE_DIR to a folder of your own.", folder
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as private:
        _build(compiler, Path(private) / name)
        return _loaded(Path(private) / name)


def _build(compiler: str, built: Path) -> None:
    """Compiles the kernel and puts it there with its checksum, readable by us alone."""
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        fresh = Path(folder) / built.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(fresh)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{compiler} could not build the kernel: {done.stderr.strip()}")
        _checksum_of(fresh).write_bytes(_sha256(fresh))
        for file, place in ((fresh, built), (_checksum_of(fresh), _checksum_of(built))):
            file.chmod(0o600)  # whatever the umask is
            os.replace(file, place)


def _loaded(built: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(built))
    library.hsae_slice_width.restype = ctypes.c_int64
    return library


def _is_whole(built: Path) -> bool:
    """Whether the library is there as we built it, and nobody else could have written it.

    A library cut short (a full disk, an interrupted copy) would end the process when it is read.
    """
    files = (built, _checksum_of(built))
    if not all(file.exists() and _is_ours(file) and not _others_may_write(file) for file in files):
        return False
    return _checksum_of(built).read_bytes() == _sha256(built)


def _checksum_of(built: Path) -> Path:
    return built.with_suffix(".sha256")


def _sha256(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).hexdigest().encode()


def _is_ours(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _others_may_write(path: Path) -> bool:
    return hasattr(os, "geteuid") and bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


@functools.cache
def _why_not() -> str | None:
    try:
        _library()
    except (RuntimeError, OSError) as error:  # no compiler, no home directory, a full disk
        return str(error)
    return None


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # One pool per process: threads do not survive a fork.
    return ThreadPoolExecutor(threads, thread_name_prefix="hsae")


def _n_workers(n_slices: int) -> int:
    return min(torch.get_num_threads(), n_slices)


def _run_slices(work: Callable[[int, int], int], n_slices: int) -> None:
    """Calls ``work(worker, slice)`` for every slice; each worker takes every n-th, in order.

    The assignment is fixed, so sums that a worker keeps over its slices are the same bits for
    the same number of threads.
    """
    workers = _n_workers(n_slices)

    def share(worker: int) -> int:
        return max(work(worker, n) for n in range(worker, n_slices, workers))

    # ctypes releases the GIL during a call, so these are real threads.
    codes = _pool(os.getpid(), workers).map(share, range(workers)) if workers > 1 else [share(0)]
    if any(list(codes)):
        raise MemoryError("the native kernel could not allocate its work space")


def _pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def nested(p: NestedProblem, needs_grad: bool) -> NestedSolution:
    library = _library()
    n_tokens, k = p.values.shape
    d_sae, d_in = p.W_dec.shape
    n_budgets = len(p.budgets)
    width = library.hsae_slice_width()
    n_slices = -(-d_in // width)
    # Packing costs a pass over W_dec; for few tokens the rows are read where they lie.
    pack = n_tokens * k >= d_sae
    # C reads these as what they are here, whatever torch's default dtype and device.
    cpu = torch.device("cpu")
    budgets = torch.tensor(p.budgets, dtype=torch.int64, device=cpu)
    weights = torch.tensor(p.weights, dtype=torch.float32, device=cpu)
    squared_errors = torch.zeros(_n_workers(n_slices), n_budgets, dtype=torch.float64, device=cpu)
    residual = torch.empty_like(p.target)
    d_values = suffix = d_W_dec = None
    if needs_grad:
        d_values = p.values.new_zeros(_n_workers(n_slices), n_tokens, k)
        suffix = torch.empty_like(p.target)
        d_W_dec = (torch.empty_like if pack else torch.zeros_like)(p.W_dec)

    def work(worker: int, n: int) -> int:
        return library.hsae_nested_slice(
            *map(ctypes.c_int64, (n_tokens, k, d_in, d_sae, n * width, n_budgets)),
            *map(_pointer, (p.values, p.indices, p.W_dec, p.b_dec, p.target)),
            *map(_pointer, (budgets, weights, p.token_weights, squared_errors[worker], residual)),
            ctypes.c_int(needs_grad),
            *map(_pointer, (None if d_values is None else d_values[worker], d_W_dec, suffix)),
            ctypes.c_int(pack),
        )

    _run_slices(work, n_slices)
    return NestedSolution(
        squared_errors.sum(0),
        residual,
        None if d_values is None else d_values.sum(0),
        d_W_dec,
        suffix,
    )


def _refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"runs on the CPU, not on {device.type}"
    if dtype != torch.float32:
        return f"is float32 only, not {str(dtype).removeprefix('torch.')}"
    return _why_not()


IMPLEMENTATION = Implementation(
    name="native",
    summary="C, compiled for this CPU, one thread per slice of d_in",
    solve=nested,
    reduce=encoder_grad,
    refuses=_refuses,
)
