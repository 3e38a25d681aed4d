"""The ``hsae`` command: parses, calls one function, prints. Only this room prints."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from hsae_lens._util.private_names import InterruptedException
from hsae_lens._util.unavailable import UnavailableError
from hsae_lens._util.version import __version__
from hsae_lens.cli.circuits import add_circuits
from hsae_lens.cli.evaluation import add_evaluation
from hsae_lens.cli.releases import add_sharing
from hsae_lens.cli.training import add_training, run_train

DESCRIPTION = "HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget."

LONGEST_LINE = 500  # of an error, in characters

EXPECTED = (
    ValueError,
    OSError,
    FloatingPointError,
    ModuleNotFoundError,
    MemoryError,
    UnavailableError,
    torch.OutOfMemoryError,
)
"""Errors about the input or the machine; any other is a bug and shows its traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status (1 for an expected error, said in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        if arguments[:1] == ["train"]:
            run_train(arguments[1:])
        else:
            parsed = _parser().parse_args(arguments)
            parsed.run(parsed)
    except (KeyboardInterrupt, InterruptedException):
        return 130
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"hsae: {error_in_one_line(error)}", file=sys.stderr)
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, like any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="hsae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"hsae_lens {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_training, add_evaluation, add_circuits, add_sharing):
        add(commands)
    return parser


def is_expected(error: Exception) -> bool:
    """Whether an error is about the input or the machine, and one line says enough."""
    return isinstance(error, EXPECTED) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Python's and PyTorch's ways of saying it; on the CPU PyTorch has no class for it."""
    says = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return says or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def error_in_one_line(error: Exception) -> str:
    """What an error says, shortened in the middle, where the value that it quotes is."""
    said = str(error)
    if _is_out_of_memory(error):
        said = f"Out of memory; take fewer tokens, latents or a smaller model. {error}"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        said = f"{error.strerror}: {error.filename}"
    line = " ".join(said.split()) or type(error).__name__
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2 - 2
    return f"{line[:half]} … {line[-half:]}"
