"""``hsae circuits`` and ``hsae latents``."""

from __future__ import annotations

import argparse
import re
from typing import Any

from hsae_lens.cli.flags import add_command, add_flags, config_from_flags


def add_circuits(commands: Any) -> None:
    circuits = add_command(
        commands,
        "circuits",
        _circuits,
        help="which latents a behaviour runs through, at every budget",
        description=(
            "Finds a task's circuit at each budget from one attribution, judges it by ablation "
            "on other pairs beside controls, and leaves tables, pictures and a page."
        ),
    )
    from hsae_lens.circuits.config import CircuitsConfig
    from hsae_lens.evaluation.latents.config import LatentsConfig

    add_flags(circuits, CircuitsConfig)

    latents = add_command(
        commands,
        "latents",
        _latents,
        help="a page of latents: strongest contexts, activations by rank, logits",
    )
    latents.add_argument("sae", help="a folder with a saved SAE, or RELEASE/SAE_ID")
    latents.add_argument("latents", help="numbers with commas, or a nodes.csv of `hsae circuits`")
    add_flags(latents, LatentsConfig)


def _circuits(parsed: argparse.Namespace) -> None:
    from hsae_lens._util.tables import shown_columns
    from hsae_lens.circuits.config import CircuitsConfig
    from hsae_lens.circuits.run import find_circuits

    result = find_circuits(config_from_flags(parsed, CircuitsConfig))
    print(shown_columns(result.areas).to_string(index=False, float_format="{:.3f}".format))
    print(f"Wrote {parsed.out} in {result.facts['seconds']} s; "
          f"open {parsed.out}/circuits.html in a browser.")  # fmt: skip


def _latents(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.latents.dashboards import latent_dashboards
    from hsae_lens.evaluation.latents.describe import check_latents
    from hsae_lens.evaluation.latents.page import write_latents
    from hsae_lens.models.opening import open_model_of
    from hsae_lens.models.tokenizing import sample_tokens
    from hsae_lens.releases.opening import open_hierarchical

    sae = open_hierarchical(parsed.sae, parsed.device)
    latents = _numbers(parsed.latents, sae.cfg.metadata.hook_name)
    check_latents(sae, latents)
    model = open_model_of(sae, parsed.model, parsed.device, parsed.dtype)
    context = sae.cfg.metadata.context_size
    tokens, _ = sample_tokens(parsed.text, model.tokenizer, context, parsed.tokens)
    dashboards = latent_dashboards(sae, model, tokens, latents)
    text = f"{tokens.numel():,} tokens of {parsed.text or 'the reference of CPython'}"
    print(f"Wrote {write_latents(dashboards, parsed.out, parsed.sae, text)}.")


def _numbers(latents: str, hook_name: str) -> list[int]:
    """Latents written with commas, or those of one hook in a nodes.csv.

    Raises:
        ValueError: if these are no numbers, or the file has no latent of that hook.
    """
    from hsae_lens._util.tables import read_csv

    if not latents.endswith(".csv"):
        if not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", latents):
            raise ValueError(
                f"Latents are numbers with commas, or a CSV of nodes; got {latents!r}."
            )
        return [int(latent) for latent in latents.split(",")]
    nodes = read_csv(latents)
    if not {"site", "latent"} <= set(nodes.columns):
        raise ValueError(f"{latents} has no columns site and latent: `hsae circuits` writes such.")
    if nodes["latent"].dtype.kind != "i":
        raise ValueError(f"{latents} has latents that are no whole numbers.")
    mine = nodes[(nodes["site"] == hook_name) & (nodes["latent"] >= 0)]
    if mine.empty:
        raise ValueError(f"{latents} has no latent of {hook_name}.")
    return [int(latent) for latent in mine["latent"].unique()]
