"""``hsae demo``, ``hsae train``, ``hsae convert`` and ``hsae compare``."""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsae_lens.cli.flags import add_command, add_flags, config_from_flags

TRAIN_USAGE = """\
usage: hsae train [--recipe NAME_or_file.yaml] [--model_dtype auto|float32|bfloat16|float16]
                  [--from-pretrained SAE] [any flag of SAELens' training command]

The default architecture is hierarchical_topk. --model_name also takes a local Hugging Face folder
or smollm2-135m; --dataset_path also takes a local .txt, .md, .jsonl, .json, .parquet or .csv file,
a folder of them, or a data set saved to disk. A recipe gives values for flags, null for none; flags
on the command line win.

--dtype is SAELens': the type of the activations. The language model's own is --model_dtype. Models
that only hsae opens (local folders, smollm2-135m) are by default in "auto", bfloat16 where this
machine multiplies it faster than float32; those SAELens opens are in its default.

--from-pretrained goes on from any SAE that `hsae convert` takes: its weights, its shape and, where
flags do not say others, its k, model and hook. SAELens' own --from_pretrained_path takes a folder's
architecture and settings as they are.

Without --lr, hierarchical_topk gets a learning rate from --d_sae and --train_batch_size_tokens.

recipes in the package: {recipes}

example:
  hsae train --model_name smollm2-135m --hook_name blocks.15.hook_resid_post --d_in 576 \\
    --d_sae 4608 -k 64 --dataset_path my_text.txt --is_dataset_tokenized false \\
    --training_tokens 1000000 --log_to_wandb false --output_path runs/mine

SAELens' flags:
"""


def add_training(commands: Any) -> None:
    demo = add_command(
        commands,
        "demo",
        _demo,
        help="train one SAE for every budget on a real model, with a control and a picture",
        description=(
            "Opens SmolLM2-135M, reads CPython's reference text, trains one hierarchical SAE and a "
            "control whose loss sees only K, and evaluates both at budgets 1, 2, 4, … K on "
            "held-out text. Takes a few minutes on two cores."
        ),
    )
    from hsae_lens.training.demo import DemoConfig

    add_flags(demo, DemoConfig)

    compare = add_command(
        commands,
        "compare",
        _compare,
        help="train one SAE and specialists for each budget alike, and show who is better where",
        description=(
            "Trains families of SAEs on the same activations, learning rate tuned for each, and "
            "judges them on held-out text of two kinds: frontiers, regret with intervals, cost, a "
            "page. Goes on where an interrupted one stopped."
        ),
    )
    from hsae_lens.comparison.config import CompareConfig

    add_flags(compare, CompareConfig)

    pilot = add_command(
        commands,
        "pilot",
        _pilot,
        help="settle the settings of a long training by short ones, within a time box",
        description=(
            "Looks at the activations and says what it saw, trains small SAEs with one setting "
            "varied at a time, confirms the best on held-out text, and ends with a page and a "
            "recipe for hsae train. Goes on where an interrupted one stopped."
        ),
    )
    from hsae_lens.pilot.config import PilotConfig

    add_flags(pilot, PilotConfig)

    convert = add_command(
        commands,
        "convert",
        _convert,
        help="give an SAE that was trained for one budget every budget, by a short fine-tuning",
        description=(
            "Takes over a TopK, BatchTopK or JumpReLU SAE exactly, fine-tunes it with every budget "
            "in the loss, and shows the frontier before and after on held-out text."
        ),
    )
    from hsae_lens.conversion.config import ConvertConfig

    convert.add_argument(
        "source",
        help="a folder of SAELens, EleutherAI sparsify or dictionary_learning, RELEASE/SAE_ID, or "
        "a hub repository with one, owner/name/folder",
    )
    add_flags(convert, ConvertConfig)

    commands.add_parser(
        "train",
        help="train on any model and data set; takes every flag of SAELens' training command",
        add_help=False,
    )


def _demo(parsed: argparse.Namespace) -> None:
    from hsae_lens.training.demo import DemoConfig, run_demo

    started, out = time.perf_counter(), Path(parsed.out)
    table = run_demo(config_from_flags(parsed, DemoConfig))
    shown = table.to_string(index=False, float_format=lambda value: f"{value:.3f}")
    print(f"\n{shown}\n")
    print(f"SAE      {out / 'sae'}   (SAE.load_from_disk after import hsae_lens)")
    print(f"Control  {out / 'control'}")
    print(f"Table    {out / 'frontier.csv'}")
    print(f"Picture  {out / 'frontier.png'}")
    print(f"Took {time.perf_counter() - started:.0f} s.")


def _compare(parsed: argparse.Namespace) -> None:
    from hsae_lens.comparison.config import CompareConfig
    from hsae_lens.comparison.page import in_short
    from hsae_lens.comparison.run import run_compare

    started, out = time.perf_counter(), Path(parsed.out)
    tables = run_compare(config_from_flags(parsed, CompareConfig))
    for name in ("cost", "regret explained_variance"):
        print(tables[name].to_string(index=False, float_format=lambda value: f"{value:.3f}"), "\n")
    for line in in_short(tables):
        print(line)
    print(f"Wrote {out / 'compare.html'} and compare.png in {time.perf_counter() - started:.0f} s.")


def _pilot(parsed: argparse.Namespace) -> None:
    from hsae_lens.pilot.config import PilotConfig
    from hsae_lens.pilot.in_short import how_rates_fall, pilot_in_short, prices
    from hsae_lens.pilot.run import run_pilot

    cfg = config_from_flags(parsed, PilotConfig)
    result = run_pilot(cfg)
    short = pilot_in_short(result)
    kept = short.kept.map(lambda words: words.partition("\n")[0])
    kept.columns = [name.partition("\n")[0] for name in kept.columns]
    said = [f"{name}: {text}" for name, text in short.points.items()]
    print(f"\n{kept.to_string(index=False)}\n")
    for line in (*said, how_rates_fall(result), *prices(result)):
        print(textwrap.fill(f"- {line}", 100, subsequent_indent="  "))
    print(f"\nPage     {Path(cfg.out) / 'pilot.html'}, pilot.png, points.csv, frontier.csv")
    print(f"Recipe   {cfg.recipe_file}   (hsae train --recipe {cfg.recipe_file})")


def _convert(parsed: argparse.Namespace) -> None:
    from hsae_lens.conversion import ConvertConfig, convert_sae

    conversion = convert_sae(parsed.source, config_from_flags(parsed, ConvertConfig))
    print(f"\n{conversion}\n")
    out = Path(parsed.out)
    print(f"SAE      {out}   (HierarchicalTopKSAE.load_from_disk)")
    print(f"Card     {out / 'README.md'}")
    print(f"Table    {out / 'frontier.csv'}, frontier.png")
    print(f"Latents  {out / 'latents.csv'}")


def run_train(arguments: Sequence[str]) -> None:
    """``hsae train``: SAELens' own parser reads its flags, and prints them below our usage."""
    from hsae_lens.training.command import train_from_flags
    from hsae_lens.training.recipe_flags import recipe_names

    if not arguments or {"-h", "--help"} & set(arguments):
        print(TRAIN_USAGE.format(recipes=", ".join(recipe_names())), flush=True)
    train_from_flags(arguments)
