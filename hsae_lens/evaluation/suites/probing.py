"""Sparse probing at every budget, by the ``sae-probes`` benchmark (arXiv 2502.16681)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from hsae_lens._util.atomic_files import replacing_files, write_json
from hsae_lens._util.did_you_mean import did_you_mean
from hsae_lens.evaluation.checks import budgets_of
from hsae_lens.evaluation.fingerprints import sae_fingerprint, work_name
from hsae_lens.models.fingerprint import model_fingerprint
from hsae_lens.models.hooked_model import HookedModel
from hsae_lens.models.hooks import check_bare
from hsae_lens.objective.budgets import Budget, budget_rows
from hsae_lens.sae.inference_sae import HierarchicalTopKSAE

DATASETS = ("96_spam_is", "105_click_bait", "113_movie_sent", "36_sciq_tf")

METRICS = ["test_auc", "test_acc", "test_f1"]

NAME_IN_FILES = "model"  # in sae-probes' files, which are in a folder of the model's own

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the probe on whole activations, chosen by 5 folds

INSTALL_SAE_PROBES = (
    "Sparse probing needs sae-probes: pip install 'hsae_lens[probes]', or beside a newer pandas "
    "pip install --no-deps sae-probes xgboost-cpu and pip install 'scikit-learn<1.8' zstandard."
)


def sparse_probing(
    sae: HierarchicalTopKSAE,
    model: HookedModel,
    folder: str | Path,
    datasets: Sequence[str] = DATASETS,
    budgets: Sequence[Budget] | None = None,
    probe_sizes: Sequence[int] = (1, 2, 8),
    progress: bool = True,
) -> pd.DataFrame:
    """How well a label can be read off a few latents of each data set's last token.

    For each budget k of the SAE and each probe size, sae-probes picks the latents whose means
    differ most between the classes and fits an L1 logistic regression on them, in its "normal"
    setting. The budget is how many latents a token has; the probe size is how many the probe sees.

    Args:
        model: a hooked model in memory; its activations are made once for all budgets.
        folder: keeps activations and results, each whole or not at all, so that an interrupted run
            goes on; apart for each model, SAE (:mod:`hsae_lens.evaluation.fingerprints`) and probe
            sizes.
        datasets: names from sae-probes, as "96_spam_is".
        budgets: as :func:`evaluate_budgets` takes them; None for 1, 2, 4, … K.

    Returns:
        A row per data set, budget and probe size: ``dataset``, ``k`` (and, if not all are
        fixed, ``rule`` and ``target``), ``probe_size``, ``test_auc``,
        ``test_acc``, ``test_f1``; ``model_auc``, of a logistic regression on the model's
        whole activation; ``retention``, (test_auc − 0.5) / (model_auc − 0.5), NaN where the model's
        own is not above guessing by two standard errors (:func:`above_guessing`): there is then
        nothing to retain.

    Raises:
        ModuleNotFoundError: if sae-probes is not installed.
        ValueError: for unknown data sets, bad budgets, or SAEs attached to the model.
    """
    resolved = budgets_of(sae, budgets)
    if importlib.util.find_spec("sae_probes") is None:
        raise ModuleNotFoundError(INSTALL_SAE_PROBES)
    from sae_probes.run_sae_evals import DATASETS as KNOWN

    check_bare(model)  # sae-probes runs it itself
    for name in datasets:
        if name not in KNOWN:
            raise ValueError(f"sae-probes has no data set {name!r}.{did_you_mean(name, KNOWN)}")
    sizes = sorted(set(probe_sizes))
    of_model = Path(folder) / model_fingerprint(model)
    of_sae = of_model / sae_fingerprint(sae) / f"probes-{'-'.join(map(str, sizes))}"
    in_table = budget_rows(resolved, sae.cfg.k)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(datasets) * len(resolved), desc="Probing", disable=not progress) as bar:
        for dataset in datasets:
            with contextlib.redirect_stdout(io.StringIO()):  # it reports every file
                baseline = _probe_whole_activations(sae, model, dataset, of_model)
            able = above_guessing(**baseline)
            for budget, columns in zip(resolved, in_table, strict=True):
                with sae.using_budget(budget), contextlib.redirect_stdout(io.StringIO()):
                    found = _probe_at_budget(
                        sae, dataset, sizes, of_model, of_sae / work_name(sae, budget)
                    )
                for size, metrics in zip(sizes, found, strict=True):
                    row = {"dataset": dataset, **columns, "probe_size": size}
                    row |= {name: metrics[name] for name in METRICS}
                    kept = (
                        (metrics["test_auc"] - 0.5) / (baseline["auc"] - 0.5) if able else math.nan
                    )
                    rows.append({**row, "model_auc": baseline["auc"], "retention": kept})
                bar.update()
    return pd.DataFrame(rows)


def above_guessing(auc: float, positives: int, negatives: int) -> bool:
    """Whether an AUC on so many test examples is above 0.5 by two standard errors of a guesser's.

    That standard error, of the Mann–Whitney statistic without ties, is
    √((n₁ + n₀ + 1) / (12 n₁ n₀)).
    """
    if not positives or not negatives:
        return False
    error = ((positives + negatives + 1) / (12 * positives * negatives)) ** 0.5
    return auc > 0.5 + 2 * error


def _probe_at_budget(
    sae: HierarchicalTopKSAE, dataset: str, sizes: list[int], of_model: Path, folder: Path
) -> list[dict[str, Any]]:
    """What sae-probes finds at the SAE's present budget, a dict per probe size; kept in folder."""
    from sae_probes import run_sae_evals
    from sae_probes.run_sae_evals import get_save_metrics_path

    what: dict[str, Any] = {
        "hook_name": sae.cfg.metadata.hook_name,
        "reg_type": "l1",
        "setting": "normal",
        "model_name": NAME_IN_FILES,
    }
    file: Path = get_save_metrics_path(dataset, sae_results_path=folder, **what)
    if not file.exists():
        with replacing_files(folder) as fresh:
            run_sae_evals(
                sae,
                ks=sizes,
                results_path=fresh,
                model_cache_path=of_model,
                datasets=[dataset],
                device=str(sae.device),
                **what,
            )
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _probe_whole_activations(
    sae: HierarchicalTopKSAE, model: HookedModel, dataset: str, of_model: Path
) -> dict[str, Any]:
    """Test ``auc`` of a logistic regression on whole activations, of the same texts, and how many
    ``positives`` and ``negatives`` it is of; makes and keeps the activations."""
    from sae_probes.generate_model_activations import ensure_dataset_activations
    from sae_probes.run_sae_evals import DATASET_SIZES
    from sae_probes.utils_data import get_xy_traintest
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    hook_name = sae.cfg.metadata.hook_name
    if not (of_model / f"model_activations_{NAME_IN_FILES}" / f"{dataset}_{hook_name}.pt").exists():
        with replacing_files(of_model) as fresh:
            ensure_dataset_activations(
                NAME_IN_FILES, [dataset], [hook_name], fresh, device=str(sae.device), model=model
            )
    file = of_model / "model" / f"{dataset}_{hook_name}.json"
    if not file.exists():
        X_train, y_train, X_test, y_test = get_xy_traintest(
            min(DATASET_SIZES[dataset] - 100, 1024),
            dataset,
            hook_name,
            model_name=NAME_IN_FILES,
            model_cache_path=of_model,
        )
        # Not sae-probes' own baseline: it takes no bfloat16, and minutes without a common scale.
        probe = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(Cs=PENALTIES, cv=5, scoring="roc_auc", max_iter=1000),
        )
        probe.fit(X_train.float().numpy(), y_train)
        auc = roc_auc_score(y_test, probe.decision_function(X_test.float().numpy()))
        positives = int(y_test.sum())
        write_json(
            {"auc": float(auc), "positives": positives, "negatives": len(y_test) - positives}, file
        )
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept
