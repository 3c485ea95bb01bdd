"""Read YAML files and recipes as (name, text, line) entries, and write a config as YAML. Must not know types.

Scalars are read as text, not as YAML types: `source_lang: no` is Norwegian, 2e-5 a number.
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
from mtloop.errors import UserError, first_line

NULL_TAG = "tag:yaml.org,2002:null"
MAPPING_FIELD = "lr_scheduler_kwargs"
PLAIN_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@-]*")
RECIPES = files("mtloop.config") / "recipes"


class _Loader(yaml.SafeLoader):
    """Loader that reads 1e-6 as a number, which is text in YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A setting as it was written; `where` is "FILE:LINE", empty if it does not come from a file."""

    name: str
    value: str | list[str] | None
    where: str = ""

    @property
    def prefix(self) -> str:
        """Return how a message on the setting begins."""
        return f"{self.where}: " if self.where else ""


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(Path(entry.name).stem for entry in RECIPES.iterdir() if entry.name.endswith(".yaml"))


def read_source(source: str) -> tuple[str | None, list[Entry]]:
    """Read a recipe or a YAML file.

    Args:
        source: The name of a recipe, or a path.

    Returns:
        The name of the recipe (the entry `recipe` of a file, otherwise its stem), and the settings.

    Raises:
        UserError: if there is no such recipe or file, or it is not a flat YAML mapping.
    """
    path, recipes = Path(source), recipe_names()
    if source in recipes:
        return source, read_entries((RECIPES / f"{source}.yaml").read_text("utf-8"), source)
    if path.is_dir():
        raise UserError(f"{source}: expected a recipe or a file (got a folder). A run folder has {path}/config.yaml.")
    if not path.is_file():
        kind = "no such file" if path.suffix in (".yaml", ".yml") else "neither a YAML file nor a recipe"
        near = difflib.get_close_matches(source, recipes, n=1)
        remedy = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"{source}: {kind}. {remedy}The recipes are {', '.join(recipes)}.")
    if path.suffix not in (".yaml", ".yml", ""):
        raise UserError(f"{source}: not a .yaml file. Give training data as --train_file {source}.")
    try:
        entries = read_entries(_decoded(path.read_bytes(), source), source)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)}). Give a text file.") from None
    name: Any = path.stem
    for entry in entries:
        if entry.name == "recipe":
            name = entry.value
            if isinstance(name, list):
                raise UserError(f"{entry.where}: recipe: expected one name (got a list). Give one name.")
    return name, [entry for entry in entries if entry.name != "recipe"]


def _decoded(content: bytes, shown: str) -> str:
    """Decode a file; like the parser, count the lines from 1.

    Raises:
        UserError: naming the line that is not UTF-8, or holds a character that YAML cannot.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got, before, encoding = f"byte 0x{content[error.start]:02x}", content[: error.start].count(b"\n"), "UTF-8"
    else:
        bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
        if bad is None:
            return text
        got, before, encoding = f"character {bad[0]!a}", text.count("\n", 0, bad.start()), "YAML"
    raise UserError(f"{shown}:{before + 1}: not {encoding} text (got {got}). Save the file as text in UTF-8.")


def read_entries(text: str, shown: str) -> list[Entry]:
    """Read a flat YAML mapping.

    Args:
        text: The YAML.
        shown: The name of the file in messages.

    Raises:
        UserError: if it is not YAML, not a flat mapping, or a name is repeated.
    """
    try:
        loader = _Loader(text)  # checks the characters
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{shown}{line}: invalid YAML ({problem}). Correct the line.") from None
    except RecursionError:
        line = f":{loader.line + 1}"
        raise UserError(f"{shown}{line}: nested too deeply. Write one `name: value` per line.") from None
    if not isinstance(root, yaml.MappingNode):
        line = f":{root.start_mark.line + 1}" if root else ""
        raise UserError(f"{shown}{line}: expected a mapping. Write one `name: value` per line.")
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    for key, node in root.value:
        line = key.start_mark.line + 1
        where = f"{shown}:{line}"
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{where}: expected a name. Write `name: value`.")
        name = key.value.replace("-", "_")
        if name in lines:
            raise UserError(f"{where}: {name} is repeated (first in line {lines[name]}). Leave one out.")
        lines[name] = line
        entries.append(Entry(name, _node_value(loader, name, node, where), where))
    return entries


def _node_value(loader: _Loader, name: str, node: yaml.Node, where: str) -> str | list[str] | None:
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == NULL_TAG else node.value
    if isinstance(node, yaml.MappingNode):
        if name != MAPPING_FIELD:
            raise UserError(f"{where}: {name}: expected a value (got a mapping). Do not indent or group names.")
        if not all(isinstance(item, yaml.ScalarNode) for pair in node.value for item in pair):  # also a cycle
            raise UserError(f"{where}: {name}: expected a flat mapping (got a nested one). Write {{name: number}}.")
        try:
            return json.dumps(loader.construct_object(node, deep=True), default=str)
        except (yaml.YAMLError, ValueError, TypeError) as error:
            problem = getattr(error, "problem", None) or " ".join(str(error).split())
            raise UserError(f"{where}: {name}: invalid YAML ({problem}). Correct the value.") from None
    if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        raise UserError(f"{where}: {name}: expected a list of plain values (got a nested one). Write [a, b].")
    return [item.value for item in node.value]


def to_yaml(config: Config) -> str:
    """Write a config as flat `name: value` lines that `parse_config([path])` reads back into an equal config.

    Settings that are None are left out, except the recipe, which would otherwise be the stem of the file.
    """
    lines = [f"recipe: {_scalar(config.recipe)}"]
    for group, kind in GROUPS.items():
        values = {one.name: getattr(getattr(config, group), one.name) for one in dataclasses.fields(kind)}
        lines += ["", f"# {group}"]
        lines += [f"{name}: {_scalar(value)}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_scalar, value))}]"
    # Double quotes keep every blank, line break and bracket; a plain word stays plain unless YAML reads more into it.
    style = None if PLAIN_WORD.fullmatch(value) else '"'
    flow = yaml.safe_dump([value], default_style=style, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return flow.strip()[1:-1]
