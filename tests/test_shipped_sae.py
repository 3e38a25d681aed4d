"""What the shipped SAEs are trained on, how their run goes on, and what of it is shipped."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file

from hsae_lens import load_pretrained, register_release
from hsae_lens._util.private_names import InterruptedException
from hsae_lens.models.text_files import cpython_reference, hold_out
from hsae_lens.releases.directory import RELEASES
from hsae_lens.releases.listing import list_releases
from hsae_lens.releases.model_card import write_card
from hsae_lens.training.trainer import HierarchicalTopKTrainer

pytest.importorskip("sae_probes")
from shipped_sae import __main__ as command
from shipped_sae import describing, shipping, training
from shipped_sae.corpus import documents
from shipped_sae.training import latest_checkpoint, noting_minutes

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def test_the_corpus_is_distinct_varied_and_the_same_every_time() -> None:
    some = documents(20_000)
    assert len(set(some)) == len(some) > 5_000
    assert min(map(len, some)) >= 80
    assert 1_000_000 < sum(map(len, some)) < 113 * 30_000
    assert documents(20_000) == some
    assert any("#include" in text for text in some), "code"
    assert any("was born" in text for text in some), "encyclopaedic prose"
    kept, held = hold_out(some, 0.02)
    assert not set(kept) & set(held)


def checkpoint(folder: Path, time: int) -> Path:
    """A small one with everything a run goes on from, as SAELens names it."""
    folder.mkdir(parents=True)
    for name in ("cfg.json", "activation_scaler.json"):
        (folder / name).write_text("{}")
    for name in ("sae_weights.safetensors", "activations_store_state.safetensors"):
        save_file({"n": torch.zeros(1)}, folder / name)
    torch.save({"n_training_steps": time}, folder / "trainer_state.pt")
    os.utime(folder, (time, time))
    return folder


def test_a_run_goes_on_from_its_newest_whole_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert latest_checkpoint(tmp_path) is None
    checkpoint(tmp_path / "a/200", 1)
    whole = checkpoint(tmp_path / "b/100", 2)
    broken = [checkpoint(tmp_path / f"b/30{n}", 3 + n) for n in range(3)]
    (broken[0] / "activation_scaler.json").unlink()  # what SAELens writes after the state
    state = broken[1] / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:-40])
    (broken[2] / "activations_store_state.safetensors").write_bytes(b"")
    for n, folder in enumerate(broken):
        os.utime(folder, (3 + n, 3 + n))
    broken.append(checkpoint(tmp_path / "b/.saving-x/400", 9))
    assert latest_checkpoint(tmp_path) == str(whole)
    said = capsys.readouterr().out
    for folder in broken:
        assert f"Passed over the checkpoint {folder}: " in said
    assert "a/200" not in said


@pytest.fixture
def shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gemma2: Any
) -> Iterator[Callable[..., Path]]:
    """Runs the command small, on the tiny Gemma-2; gives the folder of the release it writes."""
    texts = cpython_reference()[:12]
    monkeypatch.setattr(command, "open_model", lambda *_: tiny_gemma2)
    monkeypatch.setattr(command, "documents", lambda characters, seed: texts[4:])
    monkeypatch.setattr(describing, "cpython_reference", lambda: texts[:4])
    for name, value in {"JUDGED_SEQUENCES": 4, "CALIBRATED_ON": 16}.items():
        monkeypatch.setattr(describing, name, value)
    for name, value in {"D_SAE": 64, "K": 4, "TOKENS_PER_STEP": 128}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(shipping, "TABLE", tmp_path / "releases.yaml")
    monkeypatch.setattr(shipping, "PICTURE", tmp_path / "pretrained.png")
    (tmp_path / "releases.yaml").touch()

    def run(*flags: str) -> Path:
        runs = str(tmp_path / "runs")
        command.main(["--layers", "0,1", "--steps", "20", "--runs", runs, *flags])
        return tmp_path / "pretrained" / shipping.RELEASE

    yield run
    for names in (RELEASES, get_pretrained_saes_directory()):
        names.pop("small", None)


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_each_depth_is_shipped_with_its_card_and_loads_by_name(
    shipped: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shipped()
    (release,) = yaml.safe_load((tmp_path / "releases.yaml").read_text()).values()
    assert [entry["id"] for entry in release["saes"]] == HOOKS
    register_release("small", model="tiny", folder=folder, saes=release["saes"])
    listed = list_releases()
    for hook in HOOKS:
        sae = load_pretrained("small", hook, k=2)
        assert sae.cfg.metadata.hook_name == hook
        assert sae.cfg.metadata.max_norm > 0
        card = (folder / hook / "README.md").read_text(encoding="utf-8")
        assert card == write_card(SAE.load_from_disk(folder / hook), shipping.RELEASE, hook)
        assert "minutes to collect activations for 2 hooks together, 0 minutes to train" in card
        assert listed.count(f"  {hook}\n") == 1
    assert (tmp_path / "pretrained.png").stat().st_size > 10_000
    assert not (tmp_path / "runs" / "activations").exists(), "gigabytes"

    before = content(tmp_path / "runs"), content(folder)
    shipped()
    assert (content(tmp_path / "runs"), content(folder)) == before, "nothing was trained again"
    with pytest.raises(SystemExit, match="was begun with"):
        shipped("--seed", "1")


def test_a_shipped_sae_gives_way_only_to_one_that_is_nowhere_worse(
    shipped: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shipped("--layers", "1")
    honest = content(folder)
    file = folder / HOOKS[1] / "cfg.json"
    cfg = json.loads(file.read_text())
    better, worse = cfg["metadata"]["frontier"][:2]
    better["ce_score"], worse["explained_variance"] = 2.0, -1.0
    file.write_text(json.dumps(cfg))
    before = content(folder)
    capsys.readouterr()
    shipped("--layers", "1")
    assert content(folder) == before
    said = capsys.readouterr().out
    assert f"The shipped SAE of {HOOKS[1]} stays" in said
    lines = [line for line in said.splitlines() if "the shipped one" in line]
    assert len(lines) == 1
    assert lines[0].startswith("  recovered cross-entropy, fixed k=1, on held-out text of the same")
    assert lines[0].endswith(", the shipped one 2.0000")
    shipped("--layers", "1", "--replace")
    assert content(folder) == honest


def test_an_interrupted_run_goes_on_where_it_was(
    shipped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, steps = HierarchicalTopKTrainer._train_step, []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self.n_training_steps)
        if len(steps) == 6:
            signal.raise_signal(signal.SIGINT)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(HierarchicalTopKTrainer, "_train_step", watched)
    with pytest.raises(InterruptedException):
        shipped("--layers", "1")
    assert list((tmp_path / "runs" / "activations").iterdir()), "kept for the next attempt"
    folder = shipped("--layers", "1")
    assert steps == list(range(20))
    assert [path.name for path in folder.iterdir()] == [HOOKS[1]]


def test_again_leaves_weights_and_says_anew_what_is_shipped(shipped: Callable[..., Path]) -> None:
    folder = shipped()
    before = content(folder)
    for hook in HOOKS:
        (folder / hook / "README.md").write_text("old")
    shipped("--again", "--layers", "0", "--seed", "0")
    assert content(folder) == before


def test_the_time_noted_is_that_of_all_attempts(tmp_path: Path) -> None:
    file = tmp_path / "training.txt"
    with pytest.raises(ZeroDivisionError), noting_minutes(file):
        1 / 0  # noqa: B018
    assert not file.exists()
    notes = file.with_suffix(".json")
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"seconds": 90.0}))
    with noting_minutes(file):
        pass
    assert file.read_text() == "2 minutes"
    notes.write_text(json.dumps({"seconds": 90.0, "killed": False, "running": True}))
    with noting_minutes(file):
        pass
    assert file.read_text() == "at least 2 minutes"
