"""YAML in which no key is there twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML forbids repeated keys; PyYAML keeps the last one and drops the others."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"{key.value!r} is there twice, again in line {line}.")
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def read_yaml(file: Any, loader: type[UniqueKeyLoader] = UniqueKeyLoader) -> Any:
    """What a YAML file holds; a key that is there twice is an error, not a silent loss.

    Args:
        file: a path, or a file in a package.
        loader: how its values are read.

    Raises:
        ValueError: if it is no YAML, or repeats a key; names file, key and line.
    """
    try:
        return yaml.load(file.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
