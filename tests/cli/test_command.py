"""The ``hsae`` command as a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sae_lens import SAE

from hsae_lens.cli import main
from hsae_lens.models.devices import model_dtype
from hsae_lens.training.command import _open_local_model, parse_train_flags
from hsae_lens.training.recipe import load_recipe, recipe_names

HSAE = Path(sys.executable).with_name("hsae")

SMALL = {
    "hook_name": "blocks.1.hook_resid_post",
    "d_in": 32,
    "d_sae": 64,
    "context_size": 32,
    "training_tokens": 1280,
    "train_batch_size_tokens": 128,
    "store_batch_size_prompts": 4,
    "n_batches_in_buffer": 8,
    "n_batches_for_norm_estimate": 2,
    "lr_warm_up_steps": 2,
    "lr_decay_steps": 2,
    "n_checkpoints": 1,
    "device": "cpu",
    "log_to_wandb": "false",
}


def hsae(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([HSAE, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == expect, run.stdout + run.stderr
    return run


Said = tuple[int, str, str]


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command without its process: exit status, output, errors."""

    def run(*arguments: object) -> Said:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # help, and what argparse refuses
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    return run


def flags(settings: dict[str, object]) -> list[object]:
    return [part for key, value in settings.items() for part in (f"--{key}", value)]


def test_help_reads_well(says: Callable[..., Said]) -> None:
    overview = hsae("--help").stdout
    assert "one SAE, every sparsity" in overview
    assert "hsae_lens 0." in says("--version")[1]
    for name in ("eval", "probe", "absorb", "interpret", "report", "advise", "circuits", "latents"):
        assert name in overview
        assert "usage: hsae" in says(name, "--help")[1]
    demo = says("demo", "--help")[1]
    for flag in ("--steps", "--layer", "--d-sae", "--k", "--text", "--out"):
        assert flag in demo
    train = says("train", "--help")[1]
    assert "--recipe NAME_or_file.yaml" in train
    assert "gemma-2-2b-layer12" in train
    for flag in ("--budgets", "--budget_weights", "--training_tokens", "--wandb_project"):
        assert flag in train


def test_the_reference_recipe_runs_on_a_tiny_gemma2(
    gemma2_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    assert "gemma-2-2b-layer12" in recipe_names()
    hsae(
        *("train", "--recipe", "gemma-2-2b-layer12"),
        *flags({**SMALL, "k": 8} | {"model_name": gemma2_folder, "dataset_path": text_file}),
        *("--checkpoint_path", tmp_path / "checkpoints", "--output_path", tmp_path / "out"),
    )
    sae = SAE.load_from_disk(tmp_path / "out")
    assert (sae.cfg.architecture(), sae.cfg.k, sae.budget) == ("hierarchical_topk", 8, 8)
    assert sae.cfg.metadata.training_architecture_details["b_dec_init"] == "mean"
    assert all(torch.isfinite(p).all() for p in sae.parameters())
    assert list((tmp_path / "checkpoints").rglob("trainer_state.pt"))


def test_the_reference_recipe_is_the_papers_setting() -> None:
    cfg = config(["--recipe", "gemma-2-2b-layer12"])
    assert (cfg.model_name, cfg.hook_name) == ("google/gemma-2-2b", "blocks.12.hook_resid_post")
    assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == (2304, 65536, 128)
    assert cfg.sae.budgets is None
    assert cfg.sae.budget_weights == "uniform"
    assert cfg.training_tokens == 10**9
    assert "fineweb" in cfg.dataset_path


def config(arguments: Sequence[str]) -> Any:
    return parse_train_flags(arguments)[0]


def recipe(folder: Path, text: str) -> list[str]:
    (folder / "mine.yaml").write_text(text)
    return ["--recipe", str(folder / "mine.yaml")]


def test_a_recipe_file_flags_win_and_other_architectures(tmp_path: Path) -> None:
    mine = recipe(tmp_path, "k: 16\nd_sae: 64\nbudgets: [1, 4, 16]\nbudget_weights: [1, 2e-1, 3]")
    cfg = config([*mine, "--lr", "0.5"])
    assert (cfg.sae.k, cfg.sae.budgets, cfg.lr) == (16, [1, 4, 16], 0.5)
    assert cfg.sae.budget_weights == [1, 0.2, 3]
    assert config([*mine, "--budgets", "1,2,16"]).sae.budgets == [1, 2, 16]
    assert config(["--budgets", "all", "-k", "4"]).sae.budgets is None
    assert config(["--architecture", "topk", "-k", "4"]).sae.architecture() == "topk"
    topk = recipe(tmp_path, "architecture: topk\nk: 4")
    assert config(topk).sae.architecture() == "topk"
    assert config([*topk, "--architecture=batchtopk"]).sae.architecture() == "batchtopk"
    for text in ("- 1\n- 2\n", "{}\n", "null\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ValueError, match="flat mapping"):
            load_recipe(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("line", "of", "value"),
    [
        ("output_path: null", "cfg.output_path", None),
        ("checkpoint_path: ~", "cfg.checkpoint_path", None),
        ("checkpoint_path:", "cfg.checkpoint_path", None),
        ("decoder_init_norm: null", "cfg.sae.decoder_init_norm", None),
        ("sequence_separator_token: null", "cfg.sequence_separator_token", None),
        ("budgets: null", "cfg.sae.budgets", None),
        ("lr_end: null\nlr: 1.0", "cfg.lr_end", 0.1),  # what SAELens makes of None
        ("output_path: 'null'", "cfg.output_path", "null"),
        ("seqpos_slice: [2, 30]", "cfg.seqpos_slice", (2, 30)),
        ("seqpos_slice: [2, null]", "cfg.seqpos_slice", (2, None)),
        ("seqpos_slice: [4, -2, 2]", "cfg.seqpos_slice", (4, -2, 2)),
        ("exclude_special_tokens: [0, 2]", "cfg.exclude_special_tokens", [0, 2]),
        ("exclude_special_tokens: true", "cfg.exclude_special_tokens", True),
        ("streaming: false", "cfg.streaming", False),
        ("streaming: no", "cfg.streaming", False),
        ("lr: 1e-3", "cfg.lr", 1e-3),
        ("adam_beta1: .5", "cfg.adam_beta1", 0.5),
        ("training_tokens: 1e9", "cfg.training_tokens", 10**9),
        ("training_tokens: 1.5e3", "cfg.training_tokens", 1500),
        ("training_tokens: 1_000", "cfg.training_tokens", 1000),
        ("hook_head_index: 3", "cfg.hook_head_index", 3),
        ("prefetch_llm_batches: 2", "cfg.prefetch_llm_batches", 2),
        ("run_name: 2026-01-02", "cfg.logger.run_name", "2026-01-02"),
        ("run_name: 12:30", "cfg.logger.run_name", "12:30"),
        ("run_name: no", "cfg.logger.run_name", "no"),
        ("run_name: -x", "cfg.logger.run_name", "-x"),
        ("wandb_id: 0123", "cfg.logger.wandb_id", "0123"),
        ("model_kwargs: {a: 1, b: [x, ~]}", "cfg.model_kwargs", {"a": 1, "b": ["x", None]}),
        ("dtype: bfloat16", "cfg.dtype", "bfloat16"),
        ("sae.dtype: bfloat16", "cfg.sae.dtype", "bfloat16"),
    ],
)  # fmt: skip
def test_a_recipe_says_every_kind_of_value(
    line: str, of: str, value: object, tmp_path: Path
) -> None:
    cfg = config([*recipe(tmp_path, line), "--verbose", "false"])
    assert eval(of, {"cfg": cfg}) == value
    assert type(eval(of, {"cfg": cfg})) is type(value)


def test_the_command_line_wins_over_a_recipes_null_and_lists(tmp_path: Path) -> None:
    mine = recipe(tmp_path, "output_path: null\nseqpos_slice: [2, null]\nmodel_dtype: float16")
    cfg = config([*mine, "--output_path", "x", "--seqpos_slice", "3", "30"])
    assert (cfg.output_path, tuple(cfg.seqpos_slice)) == ("x", (3, 30))
    assert config([*mine, "--seqpos_slice=3"]).seqpos_slice == (3,)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("d_sea: 64", "key 'd_sea' is no flag. Did you mean 'd_sae'"),
        ("logger: {log_to_wandb: true}", "key 'logger' is no flag"),
        ("lr: {peak: 1}", "lr is a mapping"),
        ("lr: [1, 2]", "lr is .* it takes one value"),
        ("budgets: [1, null]", "budgets is .* no such list"),
        ("seqpos_slice: [2, x]", "seqpos_slice is .* whole numbers"),
        ("seqpos_slice: [2, 30, 0]", "step|slice"),
        ("d_sae: null", "d_sae is null, which it cannot be: leave the key out"),
        ("training_tokens: 1.5", "--training_tokens: invalid int value: '1.5'"),
        ("streaming: maybe", "--streaming.*Boolean value expected.*'maybe'"),
        ("architecture: [topk]", "Unknown architecture .'topk'.. Did you mean 'topk'"),
        ("architecture: topq", "Unknown architecture 'topq'. Did you mean 'topk'"),
        ("feature_sampling_window: 0", "--feature_sampling_window and .* must be at least 1"),
        ("context_size: 1" + 308 * "0", "no count huge"),
        ("a: b: c", "mine.yaml cannot be read as YAML: mapping values are not allowed"),
        ("lr: 1\nlr: 2", "mine.yaml cannot be read as YAML: 'lr' is there twice, again in line 2"),
        ("a: " + "[" * 20_000, "mine.yaml cannot be read as YAML: "),
    ],
)
def test_a_wrong_recipe_is_one_line(line: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why) as said:
        config(recipe(tmp_path, line))
    assert "\n" not in str(said.value)


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
    says: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    paths = {"model_name": gemma2_folder, "dataset_path": text_file}
    wrong = {flag: str(value).replace("{tmp}", str(tmp_path)) for flag, value in wrong.items()}
    settings = {**SMALL, "k": 4, "is_dataset_tokenized": "false", "verbose": "false"}
    status, _, error = says("train", *flags({**settings, **paths, **wrong}))
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
    gemma2_folder: Path, text_file: Path, tmp_path: Path, says: Callable[..., Said]
) -> None:
    rows = [{"text": None}, *({"text": p} for p in text_file.read_text().split("\n\n")), {"id": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = {"model_name": gemma2_folder, "dataset_path": tmp_path / "rows.jsonl"}
    settings = {**SMALL, "k": 4, "is_dataset_tokenized": "false", "n_checkpoints": 0}
    assert says("train", *flags({**settings, **paths, "output_path": tmp_path / "out"}))[0] == 0
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_train_reads_local_data(
    kind: str, gemma2_folder: Path, text_file: Path, tmp_path: Path, says: Callable[..., Said]
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
        *("train", *flags({**SMALL, "is_dataset_tokenized": "false", "k": 4})),
        *("--model_name", gemma2_folder, "--dataset_path", data if kind == "folder" else path),
        *("--checkpoint_path", tmp_path / "c", "--output_path", tmp_path / "out"),
    )
    assert status == 0, error
    assert SAE.load_from_disk(tmp_path / "out").cfg.k == 4


def test_the_demo_leaves_what_it_says(gemma2_folder: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    run = hsae(
        *("demo", "--model", gemma2_folder, "--text", text_file, "--out", out, "--layer", 1),
        *("--steps", 6, "--d-sae", 64, "--k", 8, "--eval-tokens", 1024),
    )
    table = pd.read_csv(out / "frontier.csv")
    assert list(table.columns) == ["sae", "k", "l0", "explained_variance", "mse", "ce_score"]
    assert list(table["k"]) == [1, 2, 4, 8] * 2
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert (
        SAE.load_from_disk(out / "sae").cfg.metadata.training_architecture_details["budgets"]
        is None
    )
    assert SAE.load_from_disk(out / "control").cfg.architecture() == "hierarchical_topk"
    assert {path.name for path in out.iterdir()} == {
        "sae",
        "control",
        "frontier.csv",
        "frontier.png",
    }
    ran = json.loads((out / "sae" / "runner_cfg.json").read_text())
    assert ran["output_path"] == str(out / "sae")
    for line in ("hierarchical", "frontier.csv", "frontier.png", "Took"):
        assert line in run.stdout


def test_expected_errors_are_one_line(says: Callable[..., Said]) -> None:
    run = hsae("train", "--recipe", "gemma-2b-layer12", expect=1)
    assert "Did you mean 'gemma-2-2b-layer12'?" in run.stderr
    assert "Traceback" not in run.stderr
    status, _, error = says("train", "--budgets", "2,1")
    assert status == 1
    assert "Did you mean [1, 2]?" in error
    status, _, error = says("demo", "--text", "/no/such/file.txt")
    assert status == 1
    assert error.strip().endswith("No text at /no/such/file.txt.")
    status, _, error = says("train", "--d_sea=1")
    assert status == 1
    assert error.startswith("hsae: unrecognized arguments: --d_sea=1. Did you mean 'd_sae' or")
    assert error.count("\n") == 1
    assert says("train", "--b_dec_init", "ones")[0] == 1
    status, _, error = says("nonsense")
    assert status == 1
    assert error.count("\n") == 1
    assert "invalid choice: 'nonsense'" in error
