"""The ``hsae`` command: parses, calls one function."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields

from hsae_lens._version import __version__

DESCRIPTION = "HierarchicalTopK sparse autoencoders for SAELens: one SAE, every sparsity budget."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status (1 for an expected error, said in one line)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if arguments[:1] == ["train"]:  # SAELens' own parser reads these flags
        parsed = argparse.Namespace(run=_train, arguments=arguments[1:])
    else:
        parsed = parser.parse_args(arguments)
    from sae_lens.training._interruption import InterruptedException

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        parsed.run(parsed)
    except (KeyboardInterrupt, InterruptedException):
        return 130
    except _expected_errors() as error:
        print(f"hsae: {error}", file=sys.stderr)
        return 1
    return 0


def _expected_errors() -> tuple[type[BaseException], ...]:
    from hsae_lens.models import ModelUnavailableError

    return (ValueError, FileNotFoundError, FloatingPointError, ModelUnavailableError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hsae", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"hsae_lens {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train one SAE for every budget on a real model, with a control and a picture",
        description=(
            "Opens SmolLM2-135M, reads CPython's reference text, trains one hierarchical SAE and a "
            "control whose loss sees only K, and evaluates both at budgets 1, 2, 4, … K on "
            "held-out text. Takes a few minutes on two cores."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_demo_flags(demo)
    demo.set_defaults(run=_demo)

    commands.add_parser(
        "train",
        help="train on any model and data set; takes every flag of SAELens' training command",
        add_help=False,
    )
    return parser


def _add_demo_flags(parser: argparse.ArgumentParser) -> None:
    help_texts = {
        "steps": "training steps for each of the two SAEs, of 1024 tokens",
        "layer": "the residual stream after this block is rewritten",
        "d_sae": "number of latents",
        "k": "the largest budget, K",
        "text": "a local text, JSONL or parquet file or folder; None is CPython's reference",
        "out": "folder for the SAE, the table and the picture",
        "model": "hub name, local folder, or smollm2-135m",
        "device": "where to run: cpu or cuda",
        "eval_tokens": "about how many held-out tokens to evaluate on",
        "seed": "of the split, the initial weights and the order of the data",
    }
    from hsae_lens.demo import DemoConfig

    for field in fields(DemoConfig):
        kind = int if isinstance(field.default, int) else str
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=kind, default=field.default, help=help_texts[field.name])


def _demo(parsed: argparse.Namespace) -> None:
    from hsae_lens.demo import DemoConfig, run_demo

    run_demo(DemoConfig(**{f.name: getattr(parsed, f.name) for f in fields(DemoConfig)}))


def _train(parsed: argparse.Namespace) -> None:
    from hsae_lens.train_command import train

    train(parsed.arguments)
