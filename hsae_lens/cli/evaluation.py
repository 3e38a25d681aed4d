"""``hsae eval`` and what is added to it, the report, and advice."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from hsae_lens._util.columns import frontier_columns
from hsae_lens._util.tables import shown_columns
from hsae_lens.cli.flags import add_command, add_flags, config_from_flags, describe

if TYPE_CHECKING:
    import pandas as pd

    from hsae_lens.evaluation.config import EvalConfig


def add_evaluation(commands: Any) -> None:
    _add_eval(commands)
    _add_extensions(commands)
    _add_reading(commands)


def _add_eval(commands: Any) -> None:
    evaluate = add_command(
        commands,
        "eval",
        _eval,
        help="judge SAEs at every budget on the same text",
        description=(
            "Evaluates SAEs of one hook, and a random decoder as a control, at every budget on the "
            "same tokens: tables, a picture, and examples for `hsae report`."
        ),
    )
    from hsae_lens.evaluation.config import EvalConfig

    evaluate.add_argument("saes", nargs="+", help=describe(EvalConfig, "saes"))
    add_flags(evaluate, EvalConfig, "saes")


def _add_extensions(commands: Any) -> None:
    """What adds a table to a run of ``hsae eval``."""
    probe = add_command(
        commands,
        "probe",
        _probe,
        help="add sparse probing (sae-probes) to a run of `hsae eval`",
    )
    from hsae_lens.evaluation.suites.probing import DATASETS

    probe.add_argument("folder", help="a folder that `hsae eval` wrote")
    probe.add_argument("--datasets", default=",".join(DATASETS), help="of sae-probes, with commas")

    absorb = add_command(
        commands,
        "absorb",
        _absorb,
        help="add feature absorption (sae-bench) to a run of `hsae eval`",
    )
    absorb.add_argument("folder", help="a folder that `hsae eval` wrote")
    absorb.add_argument("--words", type=int, default=100, help="for each first letter, 10 or more")

    interpret = add_command(
        commands,
        "interpret",
        _interpret,
        help="add automatic interpretation by activation rank to a run of `hsae eval`",
        description=(
            "A judge explains latents and its explanations are scored (detection, fuzzing). Says "
            "what it would cost; asks the judge with --yes. Answers are kept: an interrupted run "
            "goes on."
        ),
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


def _add_reading(commands: Any) -> None:
    """What reads runs of ``hsae eval``."""
    report = add_command(
        commands,
        "report",
        _report,
        help="one HTML page from runs of `hsae eval`, or from SAEs evaluated first",
    )
    report.add_argument("runs", nargs="+", help="folders of `hsae eval`, or SAEs as it takes them")
    report.add_argument("--out", default="report.html", help="the page to write")

    advise = add_command(
        commands,
        "advise",
        _advise,
        help="the smallest budget that keeps a share of an SAE's quality",
        description="Reads the frontier saved in the SAE, or a frontier.csv of `hsae eval`.",
    )
    advise.add_argument("frontier", help="a folder with a saved SAE, RELEASE/SAE_ID, or a CSV")
    advise.add_argument("--keep", type=float, default=0.95, help="the share to keep")
    advise.add_argument("--of", default="explained_variance", help="explained_variance or ce_score")


def _eval(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.config import EvalConfig
    from hsae_lens.evaluation.frontier.own_metrics import metric_name

    config = config_from_flags(parsed, EvalConfig)
    own = map(metric_name, config.metrics)
    shown = shown_columns(_evaluate(config), [*frontier_columns("command"), *own])
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _evaluate(config: EvalConfig) -> pd.DataFrame:
    from hsae_lens.evaluation.run import run_eval

    started = time.perf_counter()
    table = run_eval(config)
    print(f"Wrote {config.out} in {time.perf_counter() - started:.0f} s.")
    return table


def _probe(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.extend_run import add_probing

    table = add_probing(parsed.folder, parsed.datasets.split(","))
    asked = [column for column in ("k", "rule", "target") if column in table]
    table = shown_columns(table)
    means = table.groupby(["sae", *asked, "probe_size"], sort=False)["test_auc"].mean()
    print(means.unstack().to_string(float_format=lambda value: f"{value:.3f}"))


def _absorb(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.extend_run import add_absorption

    table = add_absorption(parsed.folder, parsed.words)
    table = shown_columns(table)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


def _interpret(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.autointerp.judges import EndpointJudge, Judge, local_judge
    from hsae_lens.evaluation.extend_run import add_autointerp, autointerp_cost
    from hsae_lens.evaluation.run_folder import RunFolder

    if (parsed.judge is None) == (parsed.local is None):
        raise ValueError("Name a judge: --judge MODEL at --url, or --local MODEL on this machine.")
    endpoint = None if parsed.local else EndpointJudge(parsed.judge, parsed.url)
    RunFolder(parsed.folder).config()  # read before a model is opened
    judge: Judge = endpoint or local_judge(parsed.local)
    if not parsed.yes:
        asked = autointerp_cost(parsed.folder, judge, parsed.latents)
        print(f"{asked['prompts']:,} prompts, about {asked['tokens']:,} tokens. Ask with --yes.")
        return
    table = add_autointerp(parsed.folder, judge, parsed.latents)
    scores = table.groupby(["sae", "ranks"], sort=False)[["detection", "fuzzing"]]
    print(scores.agg(["mean", "count"]).to_string(float_format=lambda value: f"{value:.3f}"))


def _report(parsed: argparse.Namespace) -> None:
    from hsae_lens.evaluation.config import EvalConfig
    from hsae_lens.evaluation.report import write_report
    from hsae_lens.evaluation.run_folder import RunFolder

    for run in map(RunFolder, parsed.runs):
        if run.is_run():
            run.read()  # damaged ones are said before others are evaluated
    folders = []
    for n, given in enumerate(parsed.runs):
        if not RunFolder(given).is_run():
            config = EvalConfig([given], out=f"{parsed.out}.runs/{n}")
            _evaluate(config)
            given = config.out
        folders.append(given)
    out = write_report(folders, parsed.out)
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB); open it in a browser.")


def _advise(parsed: argparse.Namespace) -> None:
    import pandas as pd

    from hsae_lens._util.tables import read_csv, rules_of
    from hsae_lens.evaluation.frontier.advice import advise
    from hsae_lens.releases.opening import open_sae
    from hsae_lens.sae.controls import RANDOM_DECODER

    if parsed.frontier.endswith(".csv"):
        table, kind = read_csv(parsed.frontier), "sae"
    else:
        table, kind = pd.DataFrame(open_sae(parsed.frontier).cfg.metadata.frontier or []), "text"
        if table.empty:
            raise ValueError(
                f"{parsed.frontier} has no saved frontier. Run `hsae eval {parsed.frontier}` and "
                "give the frontier.csv it writes."
            )
    if kind not in table:
        table[kind] = "frontier"
    for name, rows in table[table[kind] != RANDOM_DECODER].groupby(kind, sort=False):
        for rule in dict.fromkeys(rules_of(rows)):
            print(f"{name}: {advise(rows, parsed.keep, parsed.of, rule)}")
