"""YAML that says a thing once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsae_lens._util.yaml_files import read_yaml


def test_a_key_twice_in_a_yaml_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("k: 8\nlr: 1\nk: 4\n")
    with pytest.raises(ValueError, match=r"recipe.yaml cannot be read as YAML: 'k' is there twice"):
        read_yaml(file)
    file.write_text("a: {b: 1, b: 2}")
    with pytest.raises(ValueError, match="'b' is there twice, again in line 1"):
        read_yaml(file)
    file.write_text("base: &base {k: 8}\nmine: {<<: *base, k: 4}\nlist: [{k: 1}, {k: 2}]")
    assert read_yaml(file)["mine"] == {"k": 4}
    for text in ("k: [", "\x00", "? [a]\n: b", "k: !!python/object:os.system x", "[" * 1000):
        file.write_text(text)
        with pytest.raises(ValueError, match="recipe.yaml cannot be read as YAML"):
            read_yaml(file)
