"""``python -m shipped_sae``: text, training, evaluation, the files that are shipped.

Trains an SAE at each of several depths from one pass over the language model, and writes them into
``hsae_lens/releases/pretrained/`` with their cards, their entries in ``releases.yaml`` and one
picture of their frontiers. A shipped SAE is replaced only by one that is nowhere worse. An
interrupted run goes on where it was when the same command is given again. With ``--again`` the
shipped weights stay, and what is said about them (thresholds of mean budgets, frontiers, cards,
picture) is made anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from hsae_lens import HierarchicalTopKSAE
from hsae_lens.models.devices import AUTO, dtype_name, model_dtype
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.opening import open_model
from hsae_lens.models.smollm2 import SMOLLM2
from hsae_lens.models.text_files import hold_out
from shipped_sae.corpus import documents
from shipped_sae.describing import calibrate_on, count_dead, store_frontiers
from shipped_sae.settings import TOKENS_PER_STEP, hook_of, remember_settings
from shipped_sae.shipping import draw_picture, ship, shipped_saes, worse_figures
from shipped_sae.training import trained_saes

LAYERS = "7,15,22"  # of 30: a quarter, a half and three quarters of the way


def main(arguments: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    # By name in the settings: another machine's "auto" may be another format.
    args.dtype = dtype_name(model_dtype(args.dtype, args.device))

    kept, held = hold_out(documents(args.characters_per_set, seed=args.seed), 0.02, args.seed)
    model = open_model(SMOLLM2, args.device, args.dtype)
    saes = shipped_saes(args.device) if args.again else _trained(args, model, kept, held)
    # Judged in float32: bfloat16 rounds cross-entropies.
    judge = open_model(SMOLLM2, args.device, torch.float32)
    for sae in saes:
        calibrate_on(sae, model, kept)
        store_frontiers(sae, judge, held)
        worse = [] if args.again or args.replace else worse_figures(sae)
        if worse:
            print(f"\nThe shipped SAE of {sae.cfg.metadata.hook_name} stays: the new one, in "
                  f"{args.runs}, is worse at these. --replace ships it all the same.",
                  *worse, sep="\n  ")  # fmt: skip
        else:
            ship(sae)
    draw_picture()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shipped_sae", description=__doc__)
    parser.add_argument("--layers", type=_numbers, default=LAYERS,
                        help="the residual stream after each of these blocks")  # fmt: skip
    parser.add_argument("--steps", type=int, default=5120, help=f"of {TOKENS_PER_STEP} tokens")
    parser.add_argument("--characters-per-set", type=int, default=400_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/shipped_sae"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=AUTO, help="of the model while the SAEs are trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true",
                        help="describe the weights of all that is shipped anew")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="ship SAEs that are worse, too")
    return parser


def _numbers(given: str) -> list[int]:
    return sorted({int(number) for number in given.split(",")})


def _trained(
    args: argparse.Namespace, model: HookedModel, kept: list[str], held: list[str]
) -> list[HierarchicalTopKSAE]:
    remember_settings(args)
    saes = trained_saes(args, model, kept, [hook_of(layer) for layer in args.layers])
    for sae in saes:
        count_dead(sae, model, held)
    return saes


if __name__ == "__main__":
    main()
