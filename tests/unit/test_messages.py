"""errors: each message is `FLAG or FILE:LINE: problem. Remedy.` on one line, in plain words."""

import ast
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from mtloop.cli.main import main
from mtloop.errors import MAX_CHARACTERS, UserError, check_file, check_folder, missing_package, one_line

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


def test_missing_package_names_the_extra_only_where_mtloop_is_installed(monkeypatch):
    def installed(name):
        return "0.1.0"

    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mtloop.errors.version", installed)
    assert str(missing_package("--lora_rank", "peft", "lora")) == (
        "--lora_rank: peft is not installed. Run `pip install 'mtloop[lora]'`."
    )
    monkeypatch.setattr("mtloop.errors.version", not_installed)  # in a clone
    error = ImportError("libx.so: no such file")
    assert str(missing_package("--lora_rank", "peft", "lora", error=error)) == (
        "--lora_rank: peft is not installed (libx.so: no such file). Run `pip install peft`."
    )


def test_one_line_escapes_what_breaks_or_steers_a_line():
    assert one_line("a\nb\r\x1b[2J\u2028\0 é · العربية") == r"a\nb\r\x1b[2J\u2028\x00 é · العربية"


def test_one_line_removes_passwords_of_urls():
    assert one_line("http://me:p@ss@hub:1/x@main, a@b") == "http://hub:1/x@main, a@b"


@pytest.mark.parametrize(
    "words",
    [
        ["--hub_token=SECRET", "push"], ["push", "--hub_token", "SECRET", "run"], ["push", "run", "--hub-token=SECRET"],
        ["checkpoint", "--token", "SECRET", "list", "run"], ["translate", "-hub_token", "SECRET"],
    ],
)  # fmt: skip
def test_a_token_is_refused_without_its_value(words, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("mtloop: error: --(hub_)?token: refused", line) and "SECRET" not in line


def test_one_line_leaves_out_the_middle_of_a_long_text():
    line = one_line("--flag: " + "x" * 1_000_000 + ". Remedy.")
    assert len(line) == MAX_CHARACTERS + len(" ... ") and line.startswith("--flag: xx") and line.endswith("xx. Remedy.")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "LONG"], ["train", "LONG.yaml"], ["corpus", "LONG"], ["corpus", "--run", "LONG"], ["average", "LONG"],
        ["checkpoint", "list", "LONG"], ["push", "LONG"], ["selfcheck", "--config_file", "LONG"],
        ["translate", "--model", "LONG", "--text", "x"], ["evaluate", "--model", "LONG"],
        ["export", "--model", "LONG", "-o", "x", "--format", "ctranslate2"],
    ],
)  # fmt: skip
def test_a_path_that_is_too_long_is_refused_in_one_line(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = ["--last", "2", "-o", "x"] if words[0] == "average" else []
    assert main([word.replace("LONG", "x" * 300) for word in words] + extra) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: xxx") and line.endswith(": File name too long. Give another path.")


def make_obstacles(folder):
    """Make what can be at the place of an output; return what is in the folder."""
    (folder / "file").write_text("text")
    (folder / "to_file").symlink_to("file")
    (folder / "dangling").symlink_to(folder / "gone")
    (folder / "loop").symlink_to("other")
    (folder / "other").symlink_to("loop")
    for name in ("one.txt", "two.txt"):
        (folder / name).write_text("text\n")
    return content_of(folder)


def content_of(folder):
    return {
        path.name: str(path.readlink()) if path.is_symlink() else path.read_text() for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["corpus", "one.txt", "two.txt", "--source_lang", "en", "--target_lang", "fr", "-o"],
            ["file", "to_file", "dangling", "loop", "loop/x"],
        ),
        (["evaluate", "--model", "m", "-o"], ["file", "to_file", "dangling", "loop", "dangling/x"]),
        (["evaluate", "--model", "m", "--compare"], ["to_file/x.html", "dangling/x.html", "loop/x.html"]),
        (["average", "m", "--last", "2", "-o"], ["file", "to_file", "dangling", "loop", "to_file/x"]),
        (
            ["export", "--model", "m", "--format", "ctranslate2", "-o"],
            ["file", "to_file", "dangling", "loop", "file/x"],
        ),
        (["translate", "one.txt", "two.txt", "--model", "m", "-o"], ["file", "to_file", "dangling", "loop"]),
        (
            ["translate", "one.txt", "--model", "m", "-o"],
            ["dangling", "loop", "loop/", "dangling/", "file/x", "/dev/null"],
        ),
        (["translate", "--text", "x", "--model", "m", "-o"], ["dangling", "loop", "dangling/x.txt", "/dev/null"]),
    ],
)
def test_what_is_at_the_place_of_an_output_stays_and_is_named(words, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = make_obstacles(tmp_path)
    for name in names:
        assert main([*words, name]) == 2, name
        (line,) = capsys.readouterr().err.splitlines()
        place = name.split("/")[0] or name
        assert line.startswith(f"mtloop: error: {words[-1]}") and line.endswith("."), line
        assert place in line or "several files need a folder" in line, line
        if place == "dangling":
            assert f"dangling is a link to {tmp_path / 'gone'}, which leads nowhere" in line
        if place == "loop":
            assert "loop is a link to other, which leads nowhere" in line
    assert content_of(tmp_path) == before


def test_check_file_follows_a_link_to_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_obstacles(tmp_path)
    (tmp_path / "folder").symlink_to(tmp_path, target_is_directory=True)
    assert check_file("-o", Path("to_file")) == tmp_path / "file"
    for name in ("file", "new", "folder/new", "a/b/new"):
        assert check_file("-o", Path(name)) == Path(name)
    for name in ("folder", "folder/x/.."):
        check_folder("-o", Path(name))
    with pytest.raises(UserError, match=r"^-o folder: cannot be written \(folder is a link to .*, a folder\)"):
        check_file("-o", Path("folder"))


def test_a_newline_in_a_value_leaves_the_error_on_one_line(capsys):
    assert main(["train", "--num_beams", "1\n2\u2028"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: --num_beams: expected a whole number")
