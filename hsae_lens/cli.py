"""The ``hsae`` command: parses, calls one function."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

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
    for chatty in ("httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        parsed.run(parsed)
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
    _add_evaluation(commands)
    _add_circuits(commands)
    _add_sharing(commands)
    return parser


def _add_evaluation(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="judge SAEs at every budget on the same text",
        description=(
            "Evaluates SAEs of one hook, and a random decoder as a control, at every budget on the "
            "same tokens: tables, a picture, and examples for `hsae report`."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    evaluate.add_argument("saes", nargs="+", help="folders with a saved SAE, or RELEASE/SAE_ID")
    help_texts = {
        "out": "folder for the tables, the picture and the examples",
        "text": "a local text, JSONL or parquet file or folder; None is CPython's reference",
        "model": "hub name, local folder, or smollm2-135m; None is what the first SAE says",
        "tokens": "about how many tokens to judge",
        "budgets": "comma-separated; None is 1, 2, 4, … K",
        "bootstrap": "resamples of documents for the standard errors, 0 for none",
        "tasks": "pairs of each behavioural task, 0 for none",
        "examples": "example sequences to follow latent by latent",
        "device": "where to run: cpu or cuda",
        "dtype": "of the language model; bfloat16 is faster and rounds cross-entropies",
    }
    from hsae_lens.evaluation.run import EvalConfig

    _add_flags(evaluate, EvalConfig, help_texts)
    evaluate.set_defaults(run=_eval)

    probe = commands.add_parser(
        "probe",
        help="add sparse probing (sae-probes) to a run of `hsae eval`",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    from hsae_lens.evaluation.probing import DATASETS

    probe.add_argument("folder", help="a folder that `hsae eval` wrote")
    probe.add_argument("--datasets", default=",".join(DATASETS), help="of sae-probes, with commas")
    probe.set_defaults(run=_probe)

    absorb = commands.add_parser(
        "absorb",
        help="add feature absorption (sae-bench) to a run of `hsae eval`",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    absorb.add_argument("folder", help="a folder that `hsae eval` wrote")
    absorb.add_argument("--words", type=int, default=100, help="for each first letter, 10 or more")
    absorb.set_defaults(run=_absorb)

    interpret = commands.add_parser(
        "interpret",
        help="add automatic interpretation by activation rank to a run of `hsae eval`",
        description=(
            "A judge explains latents and its explanations are scored (detection, fuzzing). Says "
            "what it would cost; asks the judge with --yes. Answers are kept: an interrupted run "
            "goes on."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    interpret.add_argument("folder", help="a folder that `hsae eval` wrote")
    interpret.add_argument("--judge", help="the judge's name at an OpenAI-compatible endpoint")
    interpret.add_argument(
        "--url", default="https://api.openai.com/v1", help="of the endpoint, up to /chat"
    )
    interpret.add_argument(
        "--local", help="a Hugging Face chat model here instead, or smollm2-135m"
    )
    interpret.add_argument("--latents", type=int, default=10, help="for each range of ranks")
    interpret.add_argument("--yes", action="store_true", help="ask the judge")
    interpret.set_defaults(run=_interpret)

    report = commands.add_parser(
        "report",
        help="one HTML page from runs of `hsae eval`, or from SAEs evaluated first",
    )
    report.add_argument("runs", nargs="+", help="folders of `hsae eval`, or SAEs as it takes them")
    report.add_argument("--out", default="report.html", help="the page to write")
    report.set_defaults(run=_report)

    advise = commands.add_parser(
        "advise",
        help="the smallest budget that keeps a share of an SAE's quality",
        description="Reads the frontier saved in the SAE, or a frontier.csv of `hsae eval`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    advise.add_argument("frontier", help="a folder with a saved SAE, RELEASE/SAE_ID, or a CSV")
    advise.add_argument("--keep", type=float, default=0.95, help="the share to keep")
    advise.add_argument("--of", default="explained_variance", help="explained_variance or ce_score")
    advise.set_defaults(run=_advise)


def _add_circuits(commands: Any) -> None:
    circuits = commands.add_parser(
        "circuits",
        help="which latents a behaviour runs through, at every budget",
        description=(
            "Finds a task's circuit at each budget from one attribution, judges it by ablation "
            "on other pairs beside controls, and leaves tables, pictures and a page."
        ),
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    circuits.add_argument(
        "--sae",
        action="append",
        required=True,
        help="a folder with a saved SAE, or RELEASE/SAE_ID; again for a further site",
    )
    circuits.add_argument(
        "--beside", action="append", default=[], help="an SAE of the first one's hook to compare"
    )
    circuits.add_argument(
        "--no-controls", dest="controls", action="store_false", help="no random decoder, no neurons"
    )
    help_texts = {
        "task": "a task's name, or a CSV, JSONL or parquet file of pairs",
        "budgets": "comma-separated, ascending",
        "pairs": "pairs of a named task: half find the circuits, half judge them",
        "sizes": "numbers of nodes to judge circuits of, comma-separated",
        "replace": "what takes the place of a node: resample, mean or zero",
        "errors": "error nodes in a circuit: remove, keep, or default (ranked like latents)",
        "steps": "of integrated gradients; 1 is one gradient",
        "out": "folder for the tables, the pictures and the page",
        "model": "hub name, local folder, or smollm2-135m; None is what the SAE says",
        "device": "where to run: cpu or cuda",
    }
    from hsae_lens.circuits.run import CircuitsConfig

    _add_flags(circuits, CircuitsConfig, help_texts)
    circuits.set_defaults(run=_circuits)

    latents = commands.add_parser(
        "latents",
        help="a page of latents: strongest contexts, activations by rank, logits",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    latents.add_argument("sae", help="a folder with a saved SAE, or RELEASE/SAE_ID")
    latents.add_argument("latents", help="numbers with commas, or a nodes.csv of `hsae circuits`")
    latents.add_argument("--text", help="a local text, JSONL or parquet file or folder")
    latents.add_argument("--tokens", type=int, default=16384, help="about how many to look at")
    latents.add_argument("--model", help="hub name, local folder, or smollm2-135m")
    latents.add_argument("--out", default="latents.html", help="the page to write")
    latents.set_defaults(run=_latents)


def _add_sharing(commands: Any) -> None:
    releases = commands.add_parser(
        "releases",
        help="list the SAEs that load by name, with their frontiers",
        description=(
            "Lists the releases in the package and in your own file (HSAE_RELEASES, else "
            "~/.config/hsae_lens/releases.yaml). Downloads nothing."
        ),
    )
    releases.set_defaults(run=_releases)

    saved = "a folder with a saved SAE, or RELEASE/SAE_ID"
    export = commands.add_parser(
        "export",
        help="write a stock SAELens TopK SAE at one budget, which loads without this package",
    )
    export.add_argument("path", help=saved)
    export.add_argument("--k", type=int, required=True, help="the budget")
    export.add_argument("--out", required=True, help="folder to write")
    export.set_defaults(run=_export)

    publish = commands.add_parser(
        "publish",
        help="upload an SAE to the Hugging Face hub, with a card and a release entry",
    )
    publish.add_argument("path", help=saved)
    publish.add_argument("repo", help="the repository, owner/name; made if it does not exist")
    publish.add_argument("--sae-id", help="its folder and id there (default: its hook's name)")
    publish.add_argument("--release", help="name in the entry to paste (default: the repository's)")
    publish.add_argument("--dry-run", action="store_true", help="show the card, upload nothing")
    publish.set_defaults(run=_publish)


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

    _add_flags(parser, DemoConfig, help_texts)


def _add_flags(parser: argparse.ArgumentParser, config: Any, help_texts: dict[str, str]) -> None:
    """A flag for each field of a config dataclass that has a help text."""
    for field in fields(config):
        if field.name in help_texts:
            kind = int if isinstance(field.default, int) else str
            flag = "--" + field.name.replace("_", "-")
            parser.add_argument(flag, type=kind, default=field.default, help=help_texts[field.name])


def _config(parsed: argparse.Namespace, config: Any) -> Any:
    return config(**{field.name: getattr(parsed, field.name) for field in fields(config)})


def _demo(parsed: argparse.Namespace) -> None:
    from hsae_lens.demo import DemoConfig, run_demo

    run_demo(_config(parsed, DemoConfig))


def _eval(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.run import EvalConfig, run_eval

    table = run_eval(_config(parsed, EvalConfig))
    shown = [c for c in ("sae", "k", "l0", "explained_variance", "ce_score", "kl") if c in table]
    print(table[shown].to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _probe(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.additions import add_probing

    table = add_probing(parsed.folder, parsed.datasets.split(","))
    means = table.groupby(["sae", "k", "probe_size"], sort=False)["test_auc"].mean()
    print(means.unstack().to_string(float_format=lambda value: f"{value:.3f}"))


def _absorb(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.additions import add_absorption

    table = add_absorption(parsed.folder, parsed.words)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _interpret(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.additions import add_interpretation, interpretation_cost
    from hsae_lens.evaluation.judges import EndpointJudge, Judge, local_judge

    if (parsed.judge is None) == (parsed.local is None):
        raise ValueError("Name a judge: --judge MODEL at --url, or --local MODEL on this machine.")
    judge: Judge = (
        local_judge(parsed.local) if parsed.local else EndpointJudge(parsed.judge, parsed.url)
    )
    if not parsed.yes:
        asked = interpretation_cost(parsed.folder, judge, parsed.latents)
        print(f"{asked['prompts']:,} prompts, about {asked['tokens']:,} tokens. Ask with --yes.")
        return
    table = add_interpretation(parsed.folder, judge, parsed.latents)
    scores = table.groupby(["sae", "ranks"], sort=False)[["detection", "fuzzing"]]
    print(scores.agg(["mean", "count"]).to_string(float_format=lambda value: f"{value:.3f}"))


def _report(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.run import EvalConfig, run_eval
    from hsae_lens.report import write_report
    from hsae_lens.report.page import is_run

    folders = []
    for n, run in enumerate(parsed.runs):
        if not is_run(run):
            config = EvalConfig([run], out=f"{parsed.out}.runs/{n}")
            run_eval(config)
            run = config.out
        folders.append(run)
    out = write_report(folders, parsed.out)
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser.")


def _advise(parsed: argparse.Namespace) -> None:
    import pandas as pd

    from hsae_lens.evaluation.advice import advise
    from hsae_lens.evaluation.run import CONTROL
    from hsae_lens.saved import open_sae

    if parsed.frontier.endswith(".csv"):
        table, kind = pd.read_csv(parsed.frontier), "sae"
    else:
        table, kind = pd.DataFrame(open_sae(parsed.frontier).cfg.metadata.frontier or []), "text"
        if table.empty:
            raise ValueError(
                f"{parsed.frontier} has no saved frontier. Run `hsae eval {parsed.frontier}` and "
                "give the frontier.csv it writes."
            )
    if kind not in table:
        table[kind] = "frontier"
    for name, rows in table[table[kind] != CONTROL].groupby(kind, sort=False):
        print(f"{name}: {advise(rows, parsed.keep, parsed.of)}")


def _circuits(parsed: argparse.Namespace) -> None:
    from hsae_lens.circuits.run import CircuitsConfig, find_circuits
    from hsae_lens.report import write_circuits

    found = find_circuits(_config(parsed, CircuitsConfig))
    page = write_circuits(found, f"{parsed.out}/circuits.html")
    print(found.areas.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(f"Wrote {parsed.out} in {found.facts['seconds']} s; open {page} in a browser.")


def _latents(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.dashboards import latent_dashboards
    from hsae_lens.models import open_model_of
    from hsae_lens.report import write_latents
    from hsae_lens.saved import open_hierarchical
    from hsae_lens.text import sample_tokens

    sae = open_hierarchical(parsed.sae)
    latents = _numbers(parsed.latents, sae.cfg.metadata.hook_name)
    model = open_model_of(sae, parsed.model)
    context = sae.cfg.metadata.context_size or 128
    tokens = sample_tokens(parsed.text, model.tokenizer, context, parsed.tokens)
    dashboards = latent_dashboards(sae, model, tokens, latents)
    text = f"{tokens.numel():,} tokens of {parsed.text or 'the reference of CPython'}"
    print(f"Wrote {write_latents(dashboards, parsed.out, parsed.sae, text)}.")


def _numbers(latents: str, hook_name: str) -> list[int]:
    """Latents written with commas, or those of one hook in a nodes.csv."""
    import pandas as pd

    if not latents.endswith(".csv"):
        return [int(latent) for latent in latents.split(",")]
    nodes = pd.read_csv(latents)
    mine = nodes[(nodes["site"] == hook_name) & (nodes["latent"] >= 0)]
    return [int(latent) for latent in mine["latent"].unique()]


def _releases(_: argparse.Namespace) -> None:
    from hsae_lens.catalogue import catalogue
    from hsae_lens.releases import read_user_file, user_file

    read_user_file()
    print(catalogue())
    print(f"\nYour own go into {user_file()}.")


def _export(parsed: argparse.Namespace) -> None:
    from hsae_lens.publish import export

    out = export(parsed.path, parsed.k, parsed.out)
    print(f"Wrote {out}, a TopK SAE with k={parsed.k}: SAE.load_from_disk({str(out)!r}).")


def _publish(parsed: argparse.Namespace) -> None:
    from hsae_lens.publish import publish
    from hsae_lens.releases import user_file

    card, entry = publish(parsed.path, parsed.repo, parsed.sae_id, parsed.release, parsed.dry_run)
    done = f"{card}\nNot uploaded (dry run)." if parsed.dry_run else f"Uploaded to {parsed.repo}."
    print(f"{done} To load it by name, put this into {user_file()}:\n\n{entry}")


def _train(parsed: argparse.Namespace) -> None:
    from hsae_lens.train_command import train

    train(parsed.arguments)
