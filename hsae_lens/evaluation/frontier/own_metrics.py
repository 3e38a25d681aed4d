"""Metrics of the user's own for a command: ``FILE.py:NAME`` in, columns of the frontier out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch

from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens._util.paths import expand_home
from hsae_lens.evaluation.frontier.metrics import TokenMetric, check_metric_names, token_values

LONGEST_LABEL = 60


@dataclass(frozen=True)
class OwnMetric:
    """A :data:`TokenMetric` from a file. label: what people read; the docstring's first line."""

    function: TokenMetric
    label: str

    def __call__(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        return self.function(x, x_hat)


def metric_name(given: str) -> str:
    """The column that ``FILE.py:NAME`` becomes; reads no file."""
    return given.rpartition(":")[2]


def open_metrics(given: Sequence[str]) -> dict[str, OwnMetric]:
    """The functions that ``FILE.py:NAME`` name, by NAME; the code of the files is run.

    Raises:
        ValueError: if one is not written so, has no such function (the near ones are said), has the
            name of a column or of another, or if its file cannot be run.
        FileNotFoundError: if there is no such file.
    """
    names = [metric_name(one) for one in given]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"Two metrics are called {twice[0]!r}: rename one, each is a column.")
    check_metric_names(names)
    files: dict[Path, ModuleType] = {}  # one file of several metrics is run once
    return {name: _open(one, name, files) for one, name in zip(given, names, strict=True)}


@torch.no_grad()
def try_metrics(metrics: Mapping[str, TokenMetric], d_in: int, device: str = "cpu") -> None:
    """Calls each with random activations ``[n, d_in]``, as they will come: float32, on ``device``.

    Raises:
        ValueError: if one fails, changes what it is given, or does not give a finite number per
            token.
    """
    generator = torch.Generator().manual_seed(0)
    for name, metric in metrics.items():
        for n in (16, 1):  # of a lone token a stray squeeze() is seen
            x, x_hat = torch.randn(2, n, d_in, generator=generator).to(device)
            before = x.clone(), x_hat.clone()
            try:
                values = metric(x, x_hat)
            except Exception as error:
                raise ValueError(
                    f"The metric {name!r} fails on {n} random activations of width {d_in}: "
                    f"{_said(error)}"
                ) from error
            token_values(name, values, n)
            if not (torch.equal(x, before[0]) and torch.equal(x_hat, before[1])):
                raise ValueError(
                    f"The metric {name!r} changes the activations that it is given; let it work on "
                    "a copy (x - x_hat, not x.sub_(x_hat))."
                )


def _open(given: str, name: str, files: dict[Path, ModuleType]) -> OwnMetric:
    file = expand_home(given.rpartition(":")[0])
    if file.suffix != ".py":
        raise ValueError(
            f"A metric is FILE.py:NAME, as in my_metrics.py:largest_miss; got {given!r}."
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file} for the metric {given!r}.")
    if file not in files:
        files[file] = _run_file(file)
    function = getattr(files[file], name, None)
    if not callable(function):
        known = _functions(files[file])
        raise ValueError(f"{file} has no function {name!r}.{did_you_mean(name, known)}")
    return OwnMetric(function, _label(function, name))


def _run_file(file: Path) -> ModuleType:
    """The file as a module, under a name that no other has."""
    module = ModuleType(f"hsae_own_metrics_{file.stem}_{abs(hash(file.resolve()))}")
    sys.modules[module.__name__] = module  # dataclasses look there
    try:
        SourceFileLoader(module.__name__, str(file)).exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        raise ValueError(f"{file}, which has a metric, cannot be run: {_said(error)}") from error
    return module


def _functions(module: ModuleType) -> list[str]:
    """What the file itself defines and does not hide."""
    return [
        name
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and name[0] != "_"
    ]


def _label(function: Any, name: str) -> str:
    """The first line of a function's docstring, without a full stop, else its name in words."""
    text = inspect.getdoc(function) if inspect.isroutine(function) else None  # not of its class
    first = (text or "").strip().partition("\n")[0]
    return shorten(first, LONGEST_LABEL, placeholder=" …").rstrip(".") or name.replace("_", " ")


def _said(error: Exception) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
