"""Sparse probing at every budget, by the ``sae-probes`` benchmark (arXiv 2502.16681)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens import SAE
from tqdm.auto import tqdm

from hsae_lens.budgets import powers_of_two, resolve_budgets
from hsae_lens.files import write_json
from hsae_lens.near import near
from hsae_lens.sae import HierarchicalTopKSAE

DATASETS = ("96_spam_is", "105_click_bait", "113_movie_sent", "36_sciq_tf")
METRICS = ["test_auc", "test_acc", "test_f1"]
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the probe on whole activations, chosen by 5 folds
HOW_TO_INSTALL = (
    "Sparse probing needs sae-probes: pip install 'hsae_lens[probes]', or beside a newer pandas "
    "pip install --no-deps sae-probes xgboost-cpu and pip install 'scikit-learn<1.8' zstandard."
)


def sparse_probing(
    sae: HierarchicalTopKSAE,
    model: Any,
    folder: str | Path,
    datasets: Sequence[str] = DATASETS,
    budgets: Sequence[int] | None = None,
    probe_sizes: Sequence[int] = (1, 2, 8),
    progress: bool = True,
) -> pd.DataFrame:
    """How well a label can be read off a few latents of each data set's last token.

    For each budget k of the SAE and each probe size, sae-probes picks the latents whose means
    differ most between the classes and fits an L1 logistic regression on them, in its "normal"
    setting. The budget is how many latents a token has; the probe size is how many the probe sees.

    Args:
        model: a hooked model in memory; its activations are made once for all budgets.
        folder: keeps activations and results, so that an interrupted run goes on. Results are kept
            apart by the SAE's weights.
        datasets: names from sae-probes, as "96_spam_is".
        budgets: ascending within 1..K; None for 1, 2, 4, … K.

    Returns:
        A row per data set, budget and probe size: ``dataset``, ``k``, ``probe_size``, ``test_auc``,
        ``test_acc``, ``test_f1``; ``model_auc``, of a logistic regression on the model's
        whole activation; ``retention``, (test_auc − 0.5) / (model_auc − 0.5), NaN where the model's
        own is no better than guessing.

    Raises:
        ModuleNotFoundError: if sae-probes is not installed.
        ValueError: for unknown data sets or bad budgets.
    """
    if importlib.util.find_spec("sae_probes") is None:
        raise ModuleNotFoundError(HOW_TO_INSTALL)
    from sae_probes import run_sae_evals
    from sae_probes.generate_model_activations import ensure_dataset_activations
    from sae_probes.run_sae_evals import DATASETS as KNOWN

    for name in datasets:
        if name not in KNOWN:
            raise ValueError(f"sae-probes has no data set {name!r}.{near(name, KNOWN)}")
    resolved = resolve_budgets(budgets or powers_of_two(sae.cfg.k), sae.cfg.k)
    folder, hook_name = Path(folder), sae.cfg.metadata.hook_name
    model_name = str(sae.cfg.metadata.model_name or "model").replace("/", "--")
    shared = {"model_name": model_name, "device": str(sae.device), "model_cache_path": folder}
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(datasets) * len(resolved), desc="Probing", disable=not progress) as bar:
        for dataset in datasets:
            with contextlib.redirect_stdout(io.StringIO()):  # it reports every file
                ensure_dataset_activations(
                    dataset_short_names=[dataset], hook_names=[hook_name], model=model, **shared
                )
                model_auc = _model_auc(dataset, hook_name, folder, model_name)
            for k in resolved:
                results = folder / fingerprint(sae) / f"k-{k}"
                with sae.budget(k), contextlib.redirect_stdout(io.StringIO()):
                    run_sae_evals(
                        sae,
                        hook_name=hook_name,
                        reg_type="l1",
                        setting="normal",
                        ks=list(probe_sizes),
                        results_path=results,
                        datasets=[dataset],
                        **shared,
                    )
                (file,) = results.rglob(f"{dataset}_{hook_name}_*.json")
                found = {result["k"]: result for result in json.loads(file.read_text())}
                if missing := [size for size in probe_sizes if size not in found]:
                    raise ValueError(
                        f"{file} was made with other probe sizes and lacks {missing}; delete it or "
                        "give another folder."
                    )
                for size in probe_sizes:
                    metrics = {name: found[size][name] for name in METRICS}
                    row = {"dataset": dataset, "k": k, "probe_size": size, **metrics}
                    able = max(model_auc - 0.5, 0.0) or float("nan")
                    kept = (metrics["test_auc"] - 0.5) / able
                    rows.append({**row, "model_auc": model_auc, "retention": kept})
                bar.update()
    return pd.DataFrame(rows)


def _model_auc(dataset: str, hook_name: str, folder: Path, model_name: str) -> float:
    """Test AUC of a logistic regression on whole activations, of the same texts; kept."""
    from sae_probes.run_sae_evals import DATASET_SIZES
    from sae_probes.utils_data import get_xy_traintest
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    file = folder / "model" / f"{dataset}_{hook_name}.json"
    if not file.exists():
        X_train, y_train, X_test, y_test = get_xy_traintest(
            min(DATASET_SIZES[dataset] - 100, 1024),
            dataset,
            hook_name,
            model_name=model_name,
            model_cache_path=folder,
        )
        # Not sae-probes' own baseline: it takes no bfloat16, and minutes without a common scale.
        probe = make_pipeline(
            StandardScaler(),
            LogisticRegressionCV(Cs=PENALTIES, cv=5, scoring="roc_auc", max_iter=1000),
        )
        probe.fit(X_train.float().numpy(), y_train)
        scores = probe.decision_function(X_test.float().numpy())
        write_json({"test_auc": float(roc_auc_score(y_test, scores))}, file)
    return float(json.loads(file.read_text())["test_auc"])


def fingerprint(sae: SAE[Any]) -> str:
    """Names an SAE's weights, so that results of another one are never taken for its own."""
    digest = hashlib.sha256()
    for name, weight in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]
