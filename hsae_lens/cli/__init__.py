"""The ``hsae`` command: parses, calls one function."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from hsae_lens._util.version import __version__
from hsae_lens.cli.circuits import add_circuits
from hsae_lens.cli.evaluation import add_evaluation
from hsae_lens.cli.sharing import add_sharing
from hsae_lens.cli.training import add_training, train_with

DESCRIPTION = "HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget."
LONGEST_LINE = 500  # of an error, in characters


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status (1 for an expected error, said in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    from hsae_lens._util.private_names import InterruptedException

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        if arguments[:1] == ["train"]:
            train_with(arguments[1:])
        else:
            parsed = _parser().parse_args(arguments)
            parsed.run(parsed)
    except (KeyboardInterrupt, InterruptedException):
        return 130
    except Exception as error:
        if not _expected(error):
            raise
        print(f"hsae: {_in_one_line(error)}", file=sys.stderr)
        return 1
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, like any other mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def _expected(error: Exception) -> bool:
    """Whether it is about the input or the machine; a bug must show its traceback."""
    from hsae_lens._util.unavailable import (
        JudgeUnavailableError,
        ModelUnavailableError,
        SAEUnavailableError,
    )

    unavailable = (ModelUnavailableError, SAEUnavailableError, JudgeUnavailableError)
    usual = (ValueError, OSError, FloatingPointError, ModuleNotFoundError, MemoryError)
    return isinstance(error, (*usual, *unavailable)) or _out_of_memory(error)


def _out_of_memory(error: Exception) -> bool:
    """PyTorch's own way of saying it, on a GPU and on the CPU."""
    import torch

    says = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return says or isinstance(error, torch.OutOfMemoryError)


def _in_one_line(error: Exception) -> str:
    said = str(error)
    if isinstance(error, MemoryError) or _out_of_memory(error):
        said = f"Out of memory; take fewer tokens, latents or a smaller model. {error}"
    elif isinstance(error, OSError) and error.strerror and error.filename:
        said = f"{error.strerror}: {error.filename}"
    line = " ".join(said.split()) or type(error).__name__
    if len(line) <= LONGEST_LINE:
        return line
    half = LONGEST_LINE // 2 - 2  # the value that it quotes is in the middle
    return f"{line[:half]} … {line[-half:]}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="hsae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"hsae_lens {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_training, add_evaluation, add_circuits, add_sharing):
        add(commands)
    return parser
