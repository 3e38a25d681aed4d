"""What users hand to the package as files, how each may be damaged, and what a right answer is.

Checks read the damaged file again with nothing of the package: safetensors, ``json``, ``csv``,
``yaml`` and pyarrow.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from helpers import tiny
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import load_file, save_file

from fuzzing.mutations import change_file_bytes, change_files, change_tree
from hsae_lens import (
    HierarchicalTopKSAE,
    HierarchicalTopKTrainingSAE,
    HierarchicalTopKTrainingSAEConfig,
    MeanBudget,
    calibrate,
)
from hsae_lens.evaluation.report import write_report
from hsae_lens.evaluation.run_folder import RunFolder
from hsae_lens.evaluation.tasks.pairs import PAIR_COLUMNS, read_pairs, tokenize_pairs
from hsae_lens.models.text_files import documents_of
from hsae_lens.releases.directory import RELEASES, register_release
from hsae_lens.releases.entries import read_releases
from hsae_lens.releases.opening import load_pretrained, open_sae
from hsae_lens.training.command import parse_train_flags

D_IN, D_SAE, K = 12, 128, 6
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    specimens: each writes a good input into a folder.  change: damages that folder, says how.
    door: what a user calls with ``(folder, scratch)``; files it writes go to ``scratch``.
    check: fails if an input that the door took was not understood rightly ``(folder, answer)``.
    names: what a refusal may point at, besides the folder and its files.
    share: of all cases, beside the other kinds'.  seconds: a case that takes longer hangs.
    """

    specimens: tuple[Callable[[Path], Any], ...]
    change: Callable[[random.Random, Path], str]
    door: Callable[[Path, Path], Any]
    check: Callable[[Path, Any], None]
    names: tuple[str, ...] = ()
    share: float = 1.0
    seconds: float = 20.0


def expect(holds: bool, wrong: str) -> None:
    """An assertion that also runs under ``python -O``."""
    if not holds:
        raise AssertionError(wrong)


# --- saved SAEs -----------------------------------------------------------------------------------


def _hierarchical(folder: Path, checkpoint: bool = False, **settings: Any) -> None:
    cfg = HierarchicalTopKTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, **settings)
    cfg.metadata.hook_name, cfg.metadata.model_name = "blocks.1.hook_resid_post", "tiny"
    cfg.metadata.context_size = 32
    sae = _uneven(HierarchicalTopKTrainingSAE(cfg))
    (sae.save_model if checkpoint else sae.save_inference_model)(folder)


def _calibrated(folder: Path) -> None:
    _hierarchical(folder)
    sae = HierarchicalTopKSAE.load_from_disk(folder)
    torch.manual_seed(0)
    calibrate(sae, torch.randn(600, D_IN), progress=False)
    sae.save_model(folder)


def _stock(folder: Path) -> None:
    _hierarchical(folder)
    HierarchicalTopKSAE.load_from_disk(folder).at_k(K - 1).save_model(folder)


def _standard(folder: Path) -> None:
    _uneven(StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))).save_model(folder)


@torch.no_grad()
def _uneven(sae: Any) -> Any:
    torch.manual_seed(0)
    for parameter in sae.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    return sae


def _change_weights(rng: random.Random, folder: Path) -> str:
    file = folder / WEIGHTS
    change = rng.choice((change_file_bytes, _change_header, *[_change_tensors] * 3))
    if rng.random() < 0.1:
        return change_files(rng, folder)
    return change(rng, file)


def _change_header(rng: random.Random, file: Path) -> str:
    """The table at the start of a safetensors file: names, types, shapes and places."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, change = change_tree(rng, json.loads(data[8 : 8 + size]))
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + size :])
    return f"header: {change}"


def _change_tensors(rng: random.Random, file: Path) -> str:
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    one = tensor.clone()
    one.view(-1)[rng.randrange(one.numel())] = rng.choice(
        (float("nan"), float("inf"), -float("inf"), 0.0, 1e30)
    )
    new = {
        "gone": None,
        "transposed": tensor.T.contiguous() if tensor.ndim > 1 else tensor[None],
        "one row fewer": tensor[1:].contiguous(),
        "flat": tensor.reshape(-1),
        "one odd number": one,
        "all NaN": torch.full_like(tensor, float("nan")),
        "empty": tensor.new_empty(0),
        "zeros": torch.zeros_like(tensor),
        "a number": tensor.new_tensor(1.0),
        **{
            str(dtype): tensor.to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64,
                          torch.bool, torch.float8_e4m3fn, torch.complex64)
        },
    }  # fmt: skip
    change = rng.choice((*new, "renamed", "one more"))
    if change == "one more":
        tensors[rng.choice(("extra", "W_gate", "threshold"))] = tensor.clone()
    else:
        del tensors[name]
        if change == "renamed":
            tensors[f"{name}s"] = tensor
        elif new[change] is not None:
            tensors[name] = new[change]
    save_file(tensors, file)
    return f"{name}: {change}"


def _change_config(rng: random.Random, folder: Path) -> str:
    return _change_json(rng, folder / CFG)


def _change_json(rng: random.Random, file: Path) -> str:
    if rng.random() < 0.25:
        return change_file_bytes(rng, file)
    tree, change = change_tree(rng, json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(tree), encoding="utf-8")
    return change


def _change_saved(rng: random.Random, folder: Path) -> str:
    return rng.choice((_change_weights, _change_config))(rng, folder)


def _open(folder: Path, scratch: Path) -> SAE[Any]:
    return open_sae(folder, dtype="float32")


def _load(folder: Path, scratch: Path) -> SAE[Any]:
    return HierarchicalTopKSAE.load_from_disk(folder)


TYPES = {
    "d_in": int,
    "d_sae": int,
    "k": int,
    "apply_b_dec_to_input": bool,
    "rescale_acts_by_decoder_norm": bool,
    "normalize_activations": str,
    "reshape_activations": str,
    "architecture": str,
}


@torch.no_grad()
def _check_saved(folder: Path, sae: SAE[Any]) -> None:
    config = json.loads((folder / CFG).read_text(encoding="utf-8"))
    _check_config(config, sae)
    tensors = load_file(folder / WEIGHTS)
    folded = config.get("rescale_acts_by_decoder_norm", False)
    loaded = sae.state_dict()
    expect(set(tensors) == set(loaded), f"the file holds {sorted(tensors)}")
    for name, tensor in tensors.items():
        expect(tensor.is_floating_point(), f"{name} is {tensor.dtype}")
        expect(bool(tensor.double().isfinite().all()), f"{name} is not finite")
        expect(tensor.shape == loaded[name].shape, f"{name} has shape {tuple(tensor.shape)}")
        same = torch.equal(tensor.to(loaded[name].dtype), loaded[name])
        expect(folded or same, f"{name} is not what the file holds")
    if any(tensor.double().abs().max() > 1e6 for tensor in tensors.values()):
        return  # rounding decides
    x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(0))
    wanted = _plain_output(config, {n: t.double() for n, t in tensors.items()}, x.double())
    got = sae.decode(sae.encode(x.to(sae.dtype)))
    expect(bool(got.isfinite().all()), "the output is not finite")
    error = (got.double() - wanted).norm() / wanted.norm().clamp(min=1e-6)
    rounding = {torch.float32: 1e-4}.get(sae.dtype, 0.1)
    expect(bool(error < rounding), f"the output differs by {error:.2g} from the plain formula's")
    if isinstance(sae, HierarchicalTopKSAE):
        code = sae.encode_ordered(x.to(sae.dtype))
        expect(bool((code.values.diff() <= 0).all()), "the code is not in order")
    if isinstance(sae, HierarchicalTopKSAE) and sae.cfg.calibration is not None:
        _, used = sae.encode_budgets(x.to(sae.dtype), [MeanBudget(j + 1) for j in range(sae.cfg.k)])
        expect(bool((used.diff(dim=0) >= 0).all()), "a larger mean budget uses less")


def _check_config(config: dict[str, Any], sae: SAE[Any]) -> None:
    for name, kind in TYPES.items():
        if name in config:
            expect(type(config[name]) is kind, f"{name} = {config[name]!r} was taken")
    expect("k" in config or not hasattr(sae.cfg, "k"), "k was guessed")
    loaded = sae.cfg.to_dict()
    metadata = config.pop("metadata", {})
    for holder, said in ((loaded, config), (loaded["metadata"], metadata)):
        for name in said.keys() & holder.keys() - {"device", "dtype", "metadata"}:
            if name == "rescale_acts_by_decoder_norm" or name.startswith("sae_lens_"):
                continue  # folded into the weights; brought up to date
            same = json.dumps(said[name]) == json.dumps(holder[name])
            expect(same, f"{name} is {said[name]!r} in the file and {holder[name]!r} loaded")


def _plain_output(
    config: dict[str, Any], w: dict[str, torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """A saved SAE's reconstruction, written down once more."""
    shift, scale = torch.zeros(1), torch.ones(1)
    if config.get("normalize_activations") == "layer_norm":
        shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        x = (x - shift) / (scale + 1e-5)
    elif config.get("normalize_activations") == "constant_norm_rescale":
        scale = x.norm(dim=-1, keepdim=True) / D_IN**0.5
        x = x / scale
    centred = x - w["b_dec"] if config.get("apply_b_dec_to_input", True) else x
    acts = centred @ w["W_enc"] + w["b_enc"]
    k = config.get("default_budget") or config.get("k", D_SAE)
    norms = torch.ones(1)
    if config.get("rescale_acts_by_decoder_norm"):
        norms = w["W_dec"].norm(dim=-1)
    lowest = (acts * norms).topk(k).values[..., -1:]
    acts = torch.where(acts * norms >= lowest, acts, 0).relu()
    return (acts @ w["W_dec"] + w["b_dec"]) * scale + shift


SPECIMENS = (
    _hierarchical,
    partial(_hierarchical, normalize_activations="layer_norm", apply_b_dec_to_input=False),
    partial(_hierarchical, normalize_activations="constant_norm_rescale", default_budget=3),
    partial(_hierarchical, dtype="bfloat16"),
    partial(_hierarchical, checkpoint=True),
    _calibrated,
    _stock,
    _standard,
)
SAVED_NAMES = (CFG, WEIGHTS, *TYPES, "default_budget", "calibration", "metadata", "dtype")
saved = partial(Kind, SPECIMENS, check=_check_saved, names=SAVED_NAMES)


# --- recipes --------------------------------------------------------------------------------------

RECIPE = """\
# a comment
model_name: google/gemma-2-2b
hook_name: blocks.12.hook_resid_post
dataset_path: HuggingFaceFW/fineweb
streaming: true
is_dataset_tokenized: false
training_tokens: 1_000_000
d_in: 64
d_sae: 128
k: 16
budgets: [1, 2, 16]
budget_weights: inverse
rescale_acts_by_decoder_norm: false
aux_loss_coefficient: 0.03125
b_dec_init: mean
normalize_activations: layer_norm
context_size: 64
exclude_special_tokens: true
lr: 3.0e-4
device: cpu
seed: 7
checkpoint_path: out/checkpoints
output_path: out/somewhere
log_to_wandb: false
run_name: "été"
"""
WITH_LISTS = RECIPE.replace(
    "exclude_special_tokens: true",
    "exclude_special_tokens: [0, 2]\nseqpos_slice: [1, 31]",
)


def _write_recipe(text: str, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")


def _change_yaml(rng: random.Random, file: Path) -> str:
    if rng.random() < 0.3:
        return change_file_bytes(rng, file)
    tree, change = change_tree(rng, yaml.safe_load(file.read_text(encoding="utf-8")))
    file.write_text(yaml.safe_dump(_printable(tree), allow_unicode=True), encoding="utf-8")
    return change


def _printable(tree: Any) -> Any:
    """A tree without lone surrogates, which YAML cannot hold."""
    if isinstance(tree, dict):
        return {_printable(key): _printable(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_printable(value) for value in tree]
    return tree.encode("utf-8", "replace").decode() if isinstance(tree, str) else tree


def _check_recipe(folder: Path, cfg: Any) -> None:
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    expect(isinstance(recipe, dict) and bool(recipe), "it is no mapping of flags")
    for key, value in recipe.items():
        holder = next(
            (part for part in (cfg, cfg.sae, cfg.logger) if key in {f.name for f in fields(part)}),
            None,
        )
        if key == "architecture":
            expect(cfg.sae.architecture() == value, f"architecture {value!r} was not taken")
            continue
        expect(holder is not None, f"{key!r} is no flag")
        got = getattr(holder, key)
        if key == "checkpoint_path" and isinstance(got, str):
            got = str(Path(got).parent)  # SAELens adds an id of its own
        if value is None and (key == "lr_end" or got == (None,)):
            continue  # SAELens: a tenth of lr, every position
        expect(_same_setting(got, value), f"{key} is {value!r} in the recipe and {got!r} in force")


def _same_setting(got: Any, said: Any) -> bool:
    if isinstance(said, list):
        return (
            isinstance(got, list | tuple)
            and len(got) == len(said)
            and all(map(_same_setting, got, said))
        )
    if isinstance(got, tuple):  # seqpos_slice: 3 is (3,), as on the command line
        return len(got) == 1 and _same_setting(got[0], said)
    if said == "all" and got is None:  # budgets
        return True
    if isinstance(got, bool):
        return str(got).lower() == str(said).lower() or (type(said) is int and got == said)
    if said is None or got is None:
        return got is said
    if isinstance(got, int | float):
        return str(got) == str(said) or float(got) == float(said)
    return str(got) == str(said) or repr(yaml.safe_load(got)) == repr(said)  # as it is written


# --- release files --------------------------------------------------------------------------------


def _write_releases(folder: Path) -> None:
    sae = folder / "saes" / "layer-1"
    _hierarchical(sae)
    digest = hashlib.sha256((sae / WEIGHTS).read_bytes()).hexdigest()
    entry = {"id": "blocks.1", "path": "layer-1", "sha256": digest, "l0": 6.0}
    table = {
        "fuzz-local": {"model": "tiny", "folder": "./saes", "saes": [entry]},
        "fuzz-hub": {
            "model": "google/gemma-2-2b",
            "repo_id": "someone/saes",
            "saes": [{"id": "a", "path": "x/y", "neuronpedia": "z"}, {"id": "b", "path": "w"}],
        },
    }
    (folder / "releases.yaml").write_text(yaml.safe_dump(table, sort_keys=False))


def _change_releases(rng: random.Random, folder: Path) -> str:
    if rng.random() < 0.1:
        return change_files(rng, folder)
    return _change_yaml(rng, folder / "releases.yaml")


def _use_releases(folder: Path, scratch: Path) -> dict[tuple[str, str], Any]:
    """Every SAE of the file by name: loaded if it is in a folder, else its path on the hub."""
    directory, known = get_pretrained_saes_directory(), set(RELEASES)
    found: dict[tuple[str, str], Any] = {}
    try:
        for release in read_releases(folder / "releases.yaml"):
            place = {"folder" if release.local else "repo_id": release.source}
            register_release(
                release.name, model=release.model, saes=list(release.saes.values()), **place
            )
            for sae_id, entry in release.saes.items():
                loaded = load_pretrained(release.name, sae_id) if release.local else entry["path"]
                found[release.name, sae_id] = loaded
                expect(isinstance(release.model, str), f"the model is {release.model!r}")
    finally:
        for name in set(RELEASES) - known:
            del RELEASES[name]
            directory.pop(name, None)
    return found


def _check_releases(folder: Path, found: dict[tuple[str, str], Any]) -> None:
    table = yaml.safe_load((folder / "releases.yaml").read_text(encoding="utf-8")) or {}
    said = {
        (str(name), str(entry["id"])): (release, entry)
        for name, release in table.items()
        for entry in release["saes"]
    }
    expect(found.keys() == said.keys(), f"{sorted(found)} were found")
    for name, (release, entry) in said.items():
        if isinstance(found[name], str):
            expect(found[name] == str(entry["path"]), f"{name} is at {found[name]}")
        else:
            place = folder / str(release["folder"]) / str(entry["path"])
            _check_saved(place, found[name])


# --- tables of pairs and texts --------------------------------------------------------------------

WORDS = ("cat", "dog", "tree", "house", "river", "stone", "bread", "night")


def _pair_rows(columns: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = [(f"The {a} sees the", f"The {b} sees the", " a", " i")
            for a, b in pairwise(WORDS)]  # fmt: skip
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _text_rows() -> list[dict[str, Any]]:
    return [{"text": f"Document {n} is about a {word}.\nIt ends."} for n, word in enumerate(WORDS)]


def _rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a table in any format, read without the package and without pandas."""
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as opened:
            return list(csv.DictReader(opened))
    if file.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    if file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="", errors="replace") as opened:
            writer = csv.DictWriter(opened, list(dict.fromkeys(k for row in rows for k in row)))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _change_table(rng: random.Random, folder: Path) -> str:
    (file,) = folder.iterdir()
    if file.suffix in (".txt", ".md") or rng.random() < 0.4:
        return change_file_bytes(rng, file)
    rows, change = change_tree(rng, _rows_of(file))
    try:
        _write_rows(file, rows)
    except Exception:  # this format cannot hold it
        return change_file_bytes(rng, file)
    return change


@cache
def _tokenizer() -> Any:
    return tiny.tokenizer()


def _use_pairs(folder: Path, scratch: Path) -> Any:
    (file,) = folder.iterdir()
    pairs = read_pairs(file)
    return pairs, tokenize_pairs(file.name, pairs, _tokenizer(), fewest=1)


def _check_pairs(folder: Path, answer: Any) -> None:
    pairs, task = answer
    (file,) = folder.iterdir()
    rows = _rows_of(file)
    columns = next(columns for columns in PAIR_COLUMNS if set(columns) <= set(rows[0]))
    said = [tuple(row.get(column) for column in columns) for row in rows]
    for cells in said:
        expect(
            all(isinstance(c, str) or type(c) in (int, float) for c in cells), f"{cells} was taken"
        )
    got = [(pair.clean, pair.corrupt, pair.right, pair.wrong) for pair in pairs]
    expect(got == [tuple(map(str, cells)) for cells in said], "texts are not those of the file")
    texts = {pair.clean.strip() for pair in pairs}
    prompts = {_tokenizer().decode(tokens[1:]).strip() for tokens in task.clean}
    expect(prompts <= texts, f"{prompts - texts} are none of the file's prompts")


def _check_texts(folder: Path, documents: list[str]) -> None:
    (file,) = folder.iterdir()
    if file.suffix in (".txt", ".md"):
        said = [file.read_text(encoding="utf-8-sig")]
    else:
        # A row without a text is left out; NaN and infinity, which JSON has not, are read as none.
        texts = [None if row is None else row.get("text") for row in _rows_of(file)]
        missing = (None, math.inf, -math.inf)
        said = [text for text in texts if text not in missing and text == text]
    expect(all(isinstance(text, str) for text in said), f"one of {said} was taken")
    expect(" ".join(documents).split() == " ".join(said).split(), "the text is not the file's")


def _tables(rows: list[dict[str, Any]], *suffixes: str) -> tuple[Callable[[Path], None], ...]:
    def write(suffix: str, folder: Path) -> None:
        _write_rows(folder / f"given{suffix}", rows)

    return tuple(partial(write, suffix) for suffix in suffixes)


def _plain_text(folder: Path) -> None:
    text = "\n\n".join(row["text"] for row in _text_rows())
    (folder / "given.txt").write_text(text, encoding="utf-8")


# --- folders of hsae eval -------------------------------------------------------------------------

SETTINGS = {
    "saes": ["saes/mine"], "out": "runs/eval", "text": None, "model": "tiny", "tokens": 64,
    "budgets": "1,2,4", "bootstrap": 20, "tasks": 4, "examples": 1, "device": "cpu",
    "dtype": "float32",
}  # fmt: skip


def _write_run(folder: Path) -> None:
    facts = {
        "model": "tiny", "hook": "blocks.1.hook_resid_post", "d_in": 12, "d_sae": 128, "k": 4,
        "text": "CPython's language reference", "tokens": 64, "hsae_lens": "0", "torch": "2",
        "seconds": 3, "settings": SETTINGS, "documents": 12, "bytes": 6000,
        "training_time": "an hour", "metrics": {"largest_miss": "Largest error"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    tables: dict[str, list[dict[str, Any]]] = {
        "frontier": [
            {"sae": sae, "k": k, "l0": float(k), "explained_variance": best - 0.4 / k,
             "explained_variance_se": 0.01, "mse": 1 / k, "cosine": 0.9, "ce_score": best - 0.3 / k,
             "ce_clean": 3.0, "ce_with_sae": 3.2, "ce_ablated": 9.0, "kl": 0.1, "dead": 0.1,
             "dense": 0.0, "largest_miss": 2 / k}
            for sae, best in (("saes/mine", 0.9), ("random decoder", 0.5)) for k in (1, 2, 4)
        ],
        "tasks": [
            {"sae": sae, "task": task, "k": k, "accuracy": 0.7, "model_accuracy": 0.9,
             "logit_diff": 1.0, "retention": 0.8, "logit_retention": 0.8}
            for sae in ("saes/mine", "random decoder") for task in ("ioi", "gender")
            for k in (1, 2, 4)
        ],
        "curve": [{"k": k, "explained_variance": k / 9, "adds": 1 / 9} for k in range(5)],
        "stability": [{"k": k, "agreement": 0.8, "shuffled": 0.1} for k in (1, 2, 4)],
        "contributions": [{"latents": 90, "rank_correlation": 0.9, "shuffled": 0.02}],
        "adaptive": [
            {"rule": rule, "target": k, "l0": k, "l0_std": 0.5, "explained_variance": 0.1 * k,
             "fixed": 0.09 * k}
            for rule in ("mean", "error") for k in (1, 2, 4)
        ],
        "probing": [
            {"sae": "saes/mine", "dataset": "spam", "k": k, "probe_size": 1, "test_auc": 0.7}
            for k in (1, 4)
        ],
        "interpretation": [
            {"sae": "saes/mine", "ranks": "1–8", "latent": 3, "explanation": "été",
             "detection": 0.7, "fuzzing": 0.6}
        ],
        "absorption": [
            {"sae": "saes/mine", "k": 4, "absorption": 0.1, "letters": 20, "probe_accuracy": 0.8}
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        _write_rows(folder / f"{name}.csv", rows)
    example = {
        "tokens": ["The", " cat"], "judged": [False, True],
        "explained": [[0.0, 0.1, 0.2, 0.3, 0.4]] * 2, "latents": [[[3, 1.5], [5, 0.5]]] * 2,
        "budgets": [1, 2, 4], "predictions": [[[[" a", 0.5]]] * 2] * 4,
    }  # fmt: skip
    (folder / "examples.json").write_text(json.dumps([example]), encoding="utf-8")


def _write_run_with_rules(folder: Path) -> None:
    """The same with budgets on average and error targets."""
    _write_run(folder)
    for name in ("frontier", "tasks", "probing", "absorption"):
        rows = [
            row | {"rule": rule, "target": 0.5 if rule == "error" else row["k"]}
            for row in _rows_of(folder / f"{name}.csv")
            for rule in ("fixed", "mean", "error")
        ]
        _write_rows(folder / f"{name}.csv", rows)
    (example,) = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    example["mean"] = {"lengths": [[1, 2, 3, 4]] * 2, "predictions": [[[[" a", 0.5]]] * 2] * 3}
    (folder / "examples.json").write_text(json.dumps([example]), encoding="utf-8")


def _change_run(rng: random.Random, folder: Path) -> str:
    if rng.random() < 0.1:
        return change_files(rng, folder)
    file = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.25:
        return change_file_bytes(rng, file)
    if file.suffix == ".json":
        return f"{file.name}: {_change_json(rng, file)}"
    rows, change = change_tree(rng, _rows_of(file))
    try:
        _write_rows(file, rows)
    except Exception:  # no table any more
        return change_file_bytes(rng, file)
    return f"{file.name}: {change}"


def _use_run(folder: Path, scratch: Path) -> Any:
    return RunFolder(folder).config(), write_report([folder], scratch / "page.html")


def _check_run(folder: Path, answer: Any) -> None:
    settings, file = answer
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for name, value in facts["settings"].items():
        got = getattr(settings, name)
        if name == "budgets" and isinstance(value, str) and isinstance(got, list):
            got = ",".join(map(str, got))
        expect(
            json.dumps(got) == json.dumps(value), f"{name} is {value!r} in run.json, {got!r} read"
        )
    page = file.read_text(encoding="utf-8")
    expect("<script>alert" not in page, "text became a script")
    for row in _rows_of(folder / "frontier.csv"):
        shown = float(row["explained_variance"] or "nan")  # a text has no place in a report
        expect(shown != shown or f"{shown:.3f}" in page, f"{shown} is not on the page")
        fixed = row.get("rule", "fixed") == "fixed"
        expect(not fixed or float(row["k"]).is_integer(), f"k = {row['k']} is no budget")


# --- all of them ----------------------------------------------------------------------------------

INPUTS: dict[str, Kind] = {
    "weights": saved(change=_change_weights, door=_open, share=3),
    "configs": saved(change=_change_config, door=_open, share=3),
    "loading": Kind((*SPECIMENS[:4], _calibrated), _change_saved, _load, _check_saved, SAVED_NAMES),
    "recipes": Kind(
        (partial(_write_recipe, RECIPE), partial(_write_recipe, WITH_LISTS)),
        lambda rng, folder: _change_yaml(rng, folder / "recipe.yaml"),
        lambda folder, scratch: parse_train_flags(["--recipe", str(folder / "recipe.yaml")])[0],
        _check_recipe,
        ("recipe", *yaml.safe_load(WITH_LISTS)),
        share=0.6,
    ),
    "releases": Kind(
        (_write_releases,),
        _change_releases,
        _use_releases,
        _check_releases,
        ("release", "fuzz-local", "fuzz-hub", CFG, WEIGHTS),
    ),
    "pairs": Kind(
        (
            *_tables(_pair_rows(PAIR_COLUMNS[0]), ".csv", ".jsonl", ".parquet"),
            *_tables(_pair_rows(PAIR_COLUMNS[1]), ".csv", ".json"),
        ),
        _change_table,
        _use_pairs,
        _check_pairs,
        ("given",),
    ),
    "texts": Kind(
        (_plain_text, *_tables(_text_rows(), ".jsonl", ".json", ".parquet")),
        _change_table,
        lambda folder, scratch: documents_of(next(folder.iterdir())),
        _check_texts,
        ("given",),
        share=0.5,
    ),
    "evaluations": Kind(
        (_write_run, _write_run_with_rules),
        _change_run,
        _use_run,
        _check_run,
        ("run.json", ".csv"),
        share=0.4,
    ),
}
"""Every kind of input, by the name that a failure is reported under."""
