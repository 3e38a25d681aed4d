"""SAEs given to others: on a hub, and as stock ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import training_sae
from helpers.hub import hub
from helpers.processes import OFFLINE, hsae, python
from helpers.releases import SHIPPED, entry
from sae_lens import SAE

from hsae_lens import load_pretrained, register_release
from hsae_lens.cli import main
from hsae_lens.releases.export import export_sae


def test_published_and_loaded_back_through_a_hub(folder: Path, tmp_path: Path) -> None:
    sae = SAE.load_from_disk(folder / "layer-1")
    sae.cfg.metadata.model_name, sae.cfg.metadata.hook_name = "tiny", "blocks.1.hook_resid_post"
    sae.save_model(folder / "layer-1")
    with hub() as server:
        environment = server.environment | {"HF_HOME": str(tmp_path / "hf")}
        done = hsae("publish", folder / "layer-1", "me/saes", **environment)
        assert done.returncode == 0, done.stderr
        uploaded = server.repositories["me/saes"]
        hook = "blocks.1.hook_resid_post"
        assert set(uploaded) == {
            "README.md",
            *(f"{hook}/{n}" for n in ("README.md", "cfg.json", "sae_weights.safetensors")),
        }
        assert b"library_name: saelens" in uploaded["README.md"]

        assert hsae("publish", folder / "layer-1", "me/saes", **environment).returncode == 0, (
            "the same again is fine"
        )
        weights = uploaded[f"{hook}/sae_weights.safetensors"]
        other = SAE.load_from_disk(folder / "layer-1")
        other.b_dec.data += 1
        other.save_model(folder / "other")
        refused = hsae("publish", folder / "other", "me/saes", **environment)
        assert refused.returncode == 1
        assert f"hsae: me/saes holds another SAE under {hook}. Give another id" in refused.stderr
        assert uploaded[f"{hook}/sae_weights.safetensors"] == weights
        replaced = hsae("publish", folder / "other", "me/saes", "--overwrite", **environment)
        assert replaced.returncode == 0, replaced.stderr
        assert uploaded[f"{hook}/sae_weights.safetensors"] != weights
        uploaded[f"{hook}/sae_weights.safetensors"] = weights

        (tmp_path / "releases.yaml").write_text(done.stdout.split("\n\n", 1)[1])
        environment["HSAE_RELEASES"] = str(tmp_path / "releases.yaml")
        load = f"import hsae_lens; print(hsae_lens.load_pretrained('saes', '{hook}', k=5).budget)"
        assert python(load, **environment).stdout == "5\n"
        assert python(load, **environment, **OFFLINE).stdout == "5\n", "from the cache"

        uploaded[f"{hook}/sae_weights.safetensors"] += b"\0"
        environment["HF_HOME"] = str(tmp_path / "other")
        assert "is not the file of the release" in python(load, **environment).stderr
        environment["HF_HOME"] = str(tmp_path / "third")
        done = python(load, **environment, **OFFLINE)
        assert "SAEUnavailableError: me/saes/" in done.stderr
        assert "is not in the local cache" in done.stderr
        done = python(load.replace("'saes'", "'me/nothing'"), **environment)
        assert "SAEUnavailableError: The Hugging Face hub has no me/nothing" in done.stderr


def test_no_hub_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("publish", "/".join(SHIPPED), "me/a")
    done = hsae(*command, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN="x")
    assert done.returncode == 1
    assert "cannot be reached for me/a" in done.stderr
    assert "Traceback" not in done.stderr
    assert main([*command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Not uploaded (dry run)" in shown
    assert "repo_id: me/a" in shown


def test_exporting_from_a_folder_and_by_name(folder: Path, tmp_path: Path) -> None:
    for where, k, out in (
        (folder / "layer-1", 3, tmp_path / "a"),
        ("/".join(SHIPPED), 32, tmp_path / "b"),
    ):
        assert main(["export", str(where), "--k", str(k), "--out", str(out)]) == 0
        stock = SAE.load_from_disk(out)
        assert (stock.cfg.architecture(), stock.cfg.k) == ("topk", k)
    x = torch.randn(5, 576)
    with load_pretrained(*SHIPPED).using_budget(32) as ours:
        torch.testing.assert_close(stock(x), ours(x))


def test_exporting_never_replaces_what_it_exports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder / "layer-1"
    register_release("mine", model="tiny", folder=folder, saes=[entry(folder)])
    (tmp_path / "link").symlink_to(source)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    for where in (source, "mine/blocks.1", tmp_path / "link"):
        for out in (source, tmp_path / "link", folder / ".." / "saes" / "layer-1"):
            for overwrite in ([], ["--overwrite"]):
                command = ["export", str(where), "--k", "2", "--out", str(out), *overwrite]
                assert main(command) == 1
                assert "holds the SAE that is to be exported" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in source.iterdir()} == before


def test_exporting_asks_before_it_replaces_another_sae(folder: Path, tmp_path: Path) -> None:
    training_sae(k=7).save_inference_model(tmp_path / "other")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "cfg.json").write_text("{}")  # whatever it belongs to
    for out in (tmp_path / "other", tmp_path / "half"):
        before = {file.name: file.read_bytes() for file in out.iterdir()}
        with pytest.raises(ValueError, match=r"holds cfg.json.* already. Give another folder, or"):
            export_sae(folder / "layer-1", 2, out)
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before
        export_sae(folder / "layer-1", 2, out, overwrite=True)
        assert SAE.load_from_disk(out).cfg.architecture() == "topk"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    export_sae(folder / "layer-1", 2, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").exists()
    with pytest.raises(ValueError, match=r"mine.txt is a file. Give a folder"):
        export_sae(folder / "layer-1", 2, tmp_path / "notes" / "mine.txt")
