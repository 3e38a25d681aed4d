"""What ``hsae train`` trains on, and how its mistakes are said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.command import SMALL, as_flags, says
from sae_lens import SAE, TopKSAE, TopKSAEConfig

from hsae_lens.models.devices import model_dtype
from hsae_lens.sae.training_sae import HierarchicalTopKTrainingSAE
from hsae_lens.training.command import _open_local_model, parse_train_flags, train_from_flags


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"d_in": 31}, "d_in is 31, but blocks.1.hook_resid_post .* set d_in to 32"),
        ({"hook_name": "blocks.1.hook_resid_pots"}, "Did you mean 'blocks.1.hook_resid_post'"),
        ({"device": "banana"}, "Unknown device 'banana': take cpu"),
        ({"llm_device": "cuda:77"}, "'cuda:77' was asked for, but"),
        ({"dtype": "float99"}, "Invalid dtype: float99. Must be one of .*float32"),
        ({"model_dtype": "float99"}, "Unknown dtype 'float99'. Did you mean"),
        ({"dataset_path": "{tmp}/textt.txt"}, "No text at .*textt.txt. Did you mean 'text.txt'"),
        ({"dataset_path": "{tmp}/empty.txt"}, "empty.txt is empty"),
        ({"dataset_path": "{tmp}/latin.txt"}, "latin.txt is not UTF-8"),
        ({"dataset_path": ""}, "--dataset_path is missing"),
        ({"model_name": "./nonesuch"}, "No model at ./nonesuch"),
        ({"output_path": "{tmp}/text.txt"}, "output_path .*text.txt is a file"),
        ({"checkpoint_path": "{tmp}/text.txt/x"}, "checkpoint_path .*text.txt is a file"),
        ({"budgets": "1,x"}, "argument --budgets: invalid budgets value: '1,x'"),
        ({"model_from_pretrained_kwargs": '{"fold_ln": true}'}, "fold_ln cannot be used with"),
        ({"resume_from_checkpoint": "{tmp}"}, "is no whole checkpoint"),
        ({"recipe": "~nosuchuser/mine.yaml"}, "~nosuchuser/mine.yaml: there is no such home"),
        ({"model_name": "~nosuchuser/model"}, "~nosuchuser/model: there is no such home"),
        ({"dataset_path": "~nosuchuser/t.txt"}, "~nosuchuser/t.txt: there is no such home"),
        ({"training_tokens": "0"}, "training_tokens must be at least 1, got 0"),
        ({"verbose": "true", "feature_sampling_window": "0"}, "--feature_sampling_window and"),
        ({"budgets": "1," + "x" * 5000}, "argument --budgets: .*xxx … xxx"),
    ],
    ids=str,
)
def test_a_mistake_in_training_is_one_line_and_leaves_nothing(
    wrong: dict[str, object],
    why: str,
    gemma2_folder: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    paths = {"model_name": gemma2_folder, "dataset_path": text_file}
    wrong = {flag: str(value).replace("{tmp}", str(tmp_path)) for flag, value in wrong.items()}
    settings = {**SMALL, "k": 4, "is_dataset_tokenized": "false", "verbose": "false"}
    status, _, error = says(capsys, "train", *as_flags({**settings, **paths, **wrong}))
    assert status == 1
    (line,) = [line for line in error.splitlines() if line.startswith("hsae: ")]
    assert re.search(why, line)
    assert "Traceback" not in error
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert not [folder for folder in tmp_path.rglob("*") if folder.is_dir()]


def test_the_models_dtype_is_its_own(gemma2_folder: Path) -> None:
    def opened(*arguments: str) -> Any:
        folder = ["--model_name", str(gemma2_folder), "--verbose", "false"]
        cfg, dtype = parse_train_flags([*folder, *arguments])
        return next(_open_local_model(cfg, dtype).parameters()).dtype

    assert opened("--dtype", "float16") == model_dtype("auto")
    assert opened("--model_dtype", "bfloat16") == torch.bfloat16
    assert opened("--model_from_pretrained_kwargs", '{"dtype": "bfloat16"}') == torch.bfloat16
    for arguments, told in (([], {}), (["--model_dtype", "float16"], {"dtype": "float16"})):
        cfg, dtype = parse_train_flags(["--model_name", "gpt2", "--verbose", "false", *arguments])
        assert _open_local_model(cfg, dtype) is None, "SAELens opens it"
        assert cfg.model_from_pretrained_kwargs == {"center_writing_weights": False, **told}


def test_rows_without_text_are_left_out_of_training(
    gemma2_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": None}, *({"text": p} for p in text_file.read_text().split("\n\n")), {"id": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = {"model_name": gemma2_folder, "dataset_path": tmp_path / "rows.jsonl"}
    settings = {**SMALL, "k": 4, "is_dataset_tokenized": "false", "n_checkpoints": 0}
    settings |= {"output_path": tmp_path / "out", **paths}
    assert says(capsys, "train", *as_flags(settings))[0] == 0
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_train_reads_local_data(
    kind: str,
    gemma2_folder: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = pd.DataFrame({"text": text_file.read_text().split("\n\n")})
    data = tmp_path / "data"
    data.mkdir()
    path = data / ("rows.parquet" if kind == "parquet" else "rows.jsonl")
    if kind == "parquet":
        rows.to_parquet(path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows.to_dict("records")))
    status, _, error = says(
        capsys,
        *("train", *as_flags({**SMALL, "is_dataset_tokenized": "false", "k": 4})),
        *("--model_name", gemma2_folder, "--dataset_path", data if kind == "folder" else path),
        *("--checkpoint_path", tmp_path / "c", "--output_path", tmp_path / "out"),
    )
    assert status == 0, error
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


def small_flags(gemma2_folder: Path, text_file: Path, out: Path, **others: Any) -> list[str]:
    given = {"model_name": gemma2_folder, "dataset_path": text_file, "output_path": out}
    settings = {**SMALL, **given, "is_dataset_tokenized": "false", "k": 8, **others}
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.mark.parametrize("flag", ["--from-pretrained", "--from_pretrained_path"])
def test_training_goes_on_from_a_hierarchical_sae(
    flag: str, gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    first = small_flags(gemma2_folder, text_file, tmp_path / "first")
    train_from_flags(first)
    # With a learning rate of nothing the second is the first.
    second = small_flags(gemma2_folder, text_file, tmp_path / "second", lr=1e-12)
    trained = train_from_flags([*second, flag, str(tmp_path / "first")])
    assert isinstance(trained, HierarchicalTopKTrainingSAE)
    before, after = (SAE.load_from_disk(tmp_path / name) for name in ("first", "second"))
    torch.testing.assert_close(after.W_dec, before.W_dec, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.b_dec, before.b_dec, atol=1e-4, rtol=1e-4)
    assert after.cfg.metadata.max_norm == before.cfg.metadata.max_norm


def test_training_goes_on_from_a_stock_sae_which_answers_what_flags_do_not(
    gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    stock = TopKSAE(TopKSAEConfig(d_in=32, d_sae=96, k=6))
    stock.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    stock.save_model(tmp_path / "stock")
    flags = small_flags(gemma2_folder, text_file, tmp_path / "out")
    asks = ("--d_in", "--d_sae", "--k", "--hook_name")
    flags = [flag for flag in flags if flag.split("=")[0] not in asks]
    begun = [*flags, "--from-pretrained", str(tmp_path / "stock")]
    trained = train_from_flags([*begun, "-k", "12", "--budgets", "1,6,12"])
    assert (trained.cfg.d_sae, trained.cfg.k, trained.budgets) == (96, 12, [1, 6, 12])
    assert trained.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
    with pytest.raises(ValueError, match="d_sae 64 does not fit --from-pretrained: it has 96"):
        train_from_flags([*begun, "--d_sae", "64"])
    with pytest.raises(ValueError, match="begins a hierarchical_topk SAE"):
        train_from_flags([*begun, "--architecture", "topk"])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        train_from_flags([*flags, "--from-pretrained", str(tmp_path / "nowhere")])
