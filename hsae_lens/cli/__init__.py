"""The ``hsae`` command: parses, calls one function."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial

from hsae_lens._version import __version__
from hsae_lens.cli.circuits import add_circuits
from hsae_lens.cli.evaluation import add_evaluation
from hsae_lens.cli.sharing import add_sharing
from hsae_lens.cli.training import add_training, train_with

DESCRIPTION = "HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status (1 for an expected error, said in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] == ["train"]:
        run = partial(train_with, arguments[1:])
    else:
        parsed = parser.parse_args(arguments)
        run = partial(parsed.run, parsed)
    from sae_lens.training._interruption import InterruptedException

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for chatty in ("httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        run()
    except (KeyboardInterrupt, InterruptedException):
        return 130
    except _expected_errors() as error:
        print(f"hsae: {error}", file=sys.stderr)
        return 1
    return 0


def _expected_errors() -> tuple[type[BaseException], ...]:
    from hsae_lens.evaluation.judges import JudgeUnavailableError
    from hsae_lens.models import ModelUnavailableError
    from hsae_lens.sources import SAEUnavailableError

    unavailable = (ModelUnavailableError, SAEUnavailableError, JudgeUnavailableError)
    usual = (ValueError, FileNotFoundError, FloatingPointError, ModuleNotFoundError)
    return (*usual, *unavailable)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"hsae_lens {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (add_training, add_evaluation, add_circuits, add_sharing):
        add(commands)
    return parser
