"""Files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsae_lens._util.atomic_files import replacing_files, replacing_folder, write_json


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def interrupted(folder: Path) -> None:
    (folder / "half.csv").write_text("half")
    raise KeyboardInterrupt


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_json({"k": "é"}, tmp_path / "new" / "facts.json")
    with pytest.raises(TypeError):
        write_json({"k": {1}}, tmp_path / "new" / "facts.json")
    assert contents(tmp_path) == {"new/facts.json": '{"k": "é"}'}


def test_files_of_an_earlier_run_are_set_aside_and_others_left(tmp_path: Path) -> None:
    owned = ("a.csv", "b.csv")
    for n in range(3):
        (tmp_path / "notes.txt").write_text("mine")
        with replacing_files(tmp_path, owned) as fresh:
            (fresh / owned[n % 2]).write_text(str(n))
    assert contents(tmp_path) == {
        "a.csv": "2", "earlier-1/a.csv": "0", "earlier-2/b.csv": "1", "notes.txt": "mine",
    }  # fmt: skip


def test_interrupted_files_leave_no_trace(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "new/deep"):
        with pytest.raises(KeyboardInterrupt), replacing_files(tmp_path / folder) as fresh:
            interrupted(fresh)
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_folder_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    folder, link = tmp_path / "saved", tmp_path / "link"
    link.symlink_to(folder)
    with replacing_folder(folder) as fresh:
        (fresh / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), replacing_folder(link) as fresh:
        interrupted(fresh)
    assert contents(folder) == {"old": "1"}
    with replacing_folder(link) as fresh:
        (fresh / "new").write_text("2")
    assert contents(folder) == {"new": "2"}
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, folder]
