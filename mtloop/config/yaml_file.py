"""YAML and recipes: a file to (name, text, line) entries, and a config back to a file. Must not know types.

Scalars are read as the text that stands there, not as YAML's idea of it: `source_lang: no` is Norwegian, 2e-5 a number.
"""

import dataclasses
import difflib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mtloop.config.settings import GROUPS, Config
from mtloop.errors import UserError

NULL_TAG = "tag:yaml.org,2002:null"
MAPPING_FIELD = "lr_scheduler_kwargs"
PLAIN_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@-]*")
FILE_ENDINGS = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One setting as it was written: `where` is "file:line", empty when it does not come from a file."""

    name: str
    value: str | list[str] | None
    where: str = ""


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    names = (entry.name for entry in files("mtloop.config").joinpath("recipes").iterdir())
    return sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml"))


def read_source(source: str) -> tuple[str | None, list[Entry]]:
    """Read a shipped recipe or a YAML file.

    Args:
        source: A recipe's name, or a path.

    Returns:
        The recipe's name (a file may give its own under `recipe`, else it is the file's stem), and the settings.

    Raises:
        UserError: There is no such recipe or file, or it cannot be read as a flat YAML mapping.
    """
    path = Path(source)
    if source in recipe_names():
        return source, read_entries(
            files("mtloop.config").joinpath("recipes").joinpath(f"{source}.yaml").read_text("utf-8"), source
        )
    if not path.is_file():
        if path.is_dir():
            raise UserError(f"{source}: a folder, not a recipe; a run's own file is {path / 'config.yaml'}")
        kind = "no such file" if path.suffix in FILE_ENDINGS else "neither a YAML file nor a recipe"
        near = difflib.get_close_matches(source, recipe_names(), n=1)
        remedy = f"did you mean {near[0]}? The recipes are" if near else "the recipes are"
        raise UserError(f"{source}: {kind}; {remedy} {', '.join(recipe_names())}")
    if path.suffix not in (".yaml", ".yml", ""):
        raise UserError(f"{source}: a recipe ends in .yaml; training data are given with --train_file {source}")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{source}: cannot be read as UTF-8 text: {getattr(error, 'strerror', None) or error}"
        ) from None
    entries = read_entries(text, source)
    named = [entry for entry in entries if entry.name == "recipe"]
    if named and isinstance(named[0].value, list):
        raise UserError(f"{named[0].where}: recipe: takes one name, not a list")
    name = named[0].value if named else path.stem
    return name if isinstance(name, str) else None, [entry for entry in entries if entry.name != "recipe"]


def read_entries(text: str, shown: str) -> list[Entry]:
    """Read a flat YAML mapping.

    Args:
        text: The YAML.
        shown: The file's name in messages.

    Raises:
        UserError: Not YAML, not a flat mapping, or a key that stands twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{shown}{line}: not YAML: {problem}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{shown}: give a mapping, one `name: value` a line")
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    for key, node in root.value:
        where = f"{shown}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: a name must be a word")
        name = key.value.replace("-", "_")
        if name in lines:
            raise UserError(f"{where}: {name} stands already in line {lines[name]}: leave one out")
        lines[name] = key.start_mark.line + 1
        entries.append(Entry(name, _node_value(name, node, where), where))
    return entries


def _node_value(name: str, node: yaml.Node, where: str) -> str | list[str] | None:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == NULL_TAG else node.value
    if isinstance(node, yaml.MappingNode):
        if name != MAPPING_FIELD:
            raise UserError(f"{where}: {name}: takes a value, not a mapping: every name stands at the left margin")
        return json.dumps(_plain(node))
    if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        raise UserError(f"{where}: {name}: takes a list of plain values")
    return [item.value for item in node.value]


def _plain(node: yaml.Node) -> Any:
    """Turn a node into JSON values; YAML 1.1 takes 1e-6 for a text, here it is the number it looks like."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    kind = node.tag.rpartition(":")[2]
    if getattr(node, "style", None) is not None:  # quoted: a text, whatever it looks like
        return node.value
    if kind in ("null", "bool", "int"):
        return yaml.safe_load(node.value)
    try:
        return float(node.value)
    except ValueError:
        return node.value


def to_yaml(config: Config) -> str:
    """Write a config as flat `name: value` lines that `parse_config([path])` reads back into an equal config.

    Fields that are None are left out, except the recipe, which would else become the file's stem.
    """
    lines = [f"recipe: {_scalar(config.recipe)}"]
    for group, kind in GROUPS.items():
        values = {one.name: getattr(getattr(config, group), one.name) for one in dataclasses.fields(kind)}
        given = [f"{name}: {_scalar(value)}" for name, value in values.items() if value is not None]
        lines += ["", f"# {group}", *given]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    # Double quotes keep every blank, line break and bracket; a plain word stays plain unless YAML sees more in it.
    style = None if PLAIN_WORD.fullmatch(value) else '"'
    flow = yaml.safe_dump([value], default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return flow.strip()[1:-1]
