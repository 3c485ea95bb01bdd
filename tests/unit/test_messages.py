"""errors: each message is `FLAG or FILE:LINE: problem. Remedy.` on one line, in plain words."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mtloop"
KINDS = {"UserError", "RunFailed"}
BANNED = re.compile(
    r"\b(is no|are no|likewise|beside|stands?|settled?|damaged|sound|wishes|of its own|goes on|there is no)\b"
)
# A flag, a file or another placeholder, a step, or a name of an environment variable or of a launch file.
BEGINNING = re.compile(r"^(--?[a-zA-Z{]|\{|step \{|[A-Z_]+[:,]|deepspeed:|fsdp|[a-z_ -]+: )")


def text_of(node):
    """Return the text of a string with {expression} for what is filled in; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        )
        return "".join(parts)
    return None


def messages():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS):
                continue
            text = text_of(node.args[0]) if node.args else None
            if text is not None:
                yield pytest.param(text, id=f"{path.relative_to(PACKAGE)}:{node.lineno}")


@pytest.mark.parametrize("text", messages())
def test_an_error_begins_with_its_place_and_ends_with_a_remedy(text):
    assert BEGINNING.match(text), text
    assert text.endswith((".", "}")), text
    assert "\n" not in text and "; give" not in text, text
    assert not BANNED.search(re.sub(r"\{[^}]*\}", "", text)), text
