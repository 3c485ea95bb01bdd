"""README.md and docs/: every command parses, every link and path leads somewhere, the reference page is current."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from mtloop.cli.launch_files import launch_files as launch_files_by_name
from mtloop.cli.main import Parser
from mtloop.config.foreign import foreign_flags
from mtloop.config.parse import parse_config
from mtloop.config.settings import DEFAULTS, resolve
from tests.support.launch import PROJECT, launch_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # installed with pytest

PAGES = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "accelerate_configs" / "README.md",
    PROJECT / "tests" / "README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {"bash", "python", "json", "text", "diff"}
# A text in backticks that is a whole command, not the mention of one.
IN_LINE = re.compile(
    r"(?!.*\.\.\.)(accelerate launch .*(train\.py|-m mtloop).*|torchrun .*train\.py.*"
    r"|python -m mtloop [a-z]+ .+|python (tests|docs)/.+|pytest .+)"
)
# Programs whose own flags are not ours to check.
OTHERS = {"export", "hf", "msgfmt", "sbatch", "pre-commit", "ruff", "mypy", "."}
README_BYTES = 12 * 1024


@dataclass(frozen=True)
class Command:
    """One command of a page, without assignments before it."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    return FENCE.sub("", text_of(page))


def codes_of(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def blocks_of(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(text_of(page)) if name == language]


def split(block: str) -> list[Command]:
    """Split a block into its commands: continued lines joined, comments and assignments dropped."""
    commands = []
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word not in ("&&", ";", "|"):
                words.append(word)
            elif words:
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                commands.append(Command(tuple(words)))
                words = []
    return commands


def commands_of(page: Path) -> list[Command]:
    """Return the commands of the blocks, and those of the cells of tables; scripts have tests that run them."""
    scripts = blocks_of(page, "bash")
    commands = [command for block in scripts if not block.startswith("#!") for command in split(block)]
    in_line = [text for text in codes_of(page) if IN_LINE.fullmatch(text)]
    return commands + [command for text in in_line for command in split(text)]


COMMANDS = {f"{page.relative_to(PROJECT)}: {command}": command for page in PAGES for command in commands_of(page)}


# commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the pages call the reader's own."""
    (tmp_path / "my.yaml").write_text("dataset_name: demo\nmodel_name_or_path: x\nsource_lang: en\ntarget_lang: fr\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_understood(name, here):
    check_command(list(COMMANDS[name].words))


def check_command(words: list[str]) -> None:
    """Parse a command with the parser of its program.

    Raises:
        AssertionError, UserError, SystemExit: the program would refuse it.
    """
    program, *rest = words
    if program == "accelerate" and rest[0] == "launch":
        check_launch(rest[1:])
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(rest)
        check_train(given.training_script, given.training_script_args)
    elif program == "python" and rest[:1] == ["-m"]:
        check_module(rest[1], rest[2:])
    elif program == "python":
        check_script(rest[0], rest[1:])
    elif program == "mtloop":
        check_mtloop(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "pytest":
        check_pytest(rest)
    else:
        assert program in OTHERS, f"{program} is a program that the test does not know"


def check_launch(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    given = launch_command_parser().parse_args(words)
    if printed := re.fullmatch(r"\$\((?:python -m )?mtloop configs (\w+)\)", given.config_file or ""):
        assert printed[1] in launch_files_by_name()
    elif given.config_file is not None:
        assert PROJECT / given.config_file == launch_file(Path(given.config_file).stem)
        assert (PROJECT / given.config_file).is_file()
    if given.module:
        check_module(given.training_script, given.training_script_args)
    else:
        check_train(given.training_script, given.training_script_args)


def check_train(script: str, flags: list[str]) -> None:
    assert script == "train.py"

    def refuse(line: str) -> None:
        raise AssertionError(line)  # a flag that is accepted and does nothing

    flags = ["my.yaml" if flag.endswith("/config.yaml") else flag for flag in flags]
    if {"--help", "--version"} & set(flags):
        return
    assert resolve(parse_config(flags, refuse)).output.output_dir


def check_module(name: str, words: list[str]) -> None:
    if name == "mtloop":
        check_mtloop(words)
    elif name != "venv":
        assert (PROJECT / f"{name.replace('.', '/')}.py").is_file()


def check_mtloop(words: list[str]) -> None:
    name, *rest = words
    module = importlib.import_module(f"mtloop.cli.commands.{name}")
    if name == "train":
        check_train("train.py", rest)
        return
    if name == "launch":
        from accelerate.commands.launch import launch_command_parser

        given = launch_command_parser().parse_args(["--config_file", str(launch_files_by_name()[rest[0]]), *rest[1:]])
        check_mtloop([given.training_script, *given.training_script_args])
        return
    parser = Parser(allow_abbrev=False)
    module.add_flags(parser)
    if name == "selfcheck":
        check_train("train.py", parser.parse_known_args(rest)[1])
    else:
        parser.parse(rest)


def check_script(name: str, words: list[str]) -> None:
    """Check a script that is no part of the package: a file, and flags that its source or train.py has."""
    if name == "train.py":
        check_train(name, words)
        return
    source = text_of(PROJECT / name) + text_of(PROJECT / "tests" / "benchmarks" / "material.py")
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source or word[2:] in DEFAULTS, f"{name} has no flag {word}"


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    if words[1] == "-r":
        assert (PROJECT / words[2]).is_file()
        return
    target = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[1])
    assert target is not None
    extras = tomllib.loads(text_of(PROJECT / "pyproject.toml"))["project"]["optional-dependencies"]
    assert set((target.group(1) or "").split(",")) - {""} <= set(extras)


def check_pytest(words: list[str]) -> None:
    markers = tomllib.loads(text_of(PROJECT / "pyproject.toml"))["tool"]["pytest"]["ini_options"]["markers"]
    names = {marker.partition(":")[0] for marker in markers}
    paths = []
    skip = False
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if skip:
            skip = False
        elif word in ("-m", "-k"):
            skip = True
            assert word == "-k" or following.split()[-1] in names
        elif word.startswith("-"):
            assert word.partition("=")[0] in ("--full", "--durations", "-s", "-q")
        else:
            paths.append(word)
    assert all((PROJECT / path).exists() for path in paths)


def test_check_command_refuses_what_the_programs_refuse(here):
    for line in (
        "accelerate launch train.py --no_such_flag 1",
        "accelerate launch train.py demo --learning_rate many",
        "accelerate launch --config_file accelerate_configs/none.yaml train.py",
        "accelerate launch --no_such_flag train.py",
        "python -m mtloop evaluate --no_such_flag",
        "python -m mtloop translate --text x",
        "python -m mtloop selfcheck --no_such_flag",
        "python tests/benchmarks/scaling.py --no_such_flag",
        "pip install '.[none]'",
        "pytest tests/none",
        "wget x",
    ):
        (command,) = split(line)
        with pytest.raises((Exception, SystemExit)):
            check_command(list(command.words))


def test_scripts_are_bash():
    """Run by tests/e2e/test_slurm.py."""
    (script,) = (PROJECT / "accelerate_configs").glob("*.sh")
    subprocess.run(["bash", "-n", script], check=True)


# Python


@every_page
def test_python_blocks_compile_and_their_imports_resolve(page):
    for block in blocks_of(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(alias.name) for alias in node.names)


# links, paths, flags


@cache
def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), target


@every_page
def test_paths_exist(page):
    """Paths of the project, written as code."""
    for text in codes_of(page):
        if re.fullmatch(r"(mtloop|tests|docs|accelerate_configs|\.ci)/[\w./-]+", text) and text != "mtloop/":
            assert (PROJECT / text).exists(), text


def test_paths_of_the_tests_exist():
    for text in codes_of(PROJECT / "tests" / "README.md"):
        if re.fullmatch(r"(unit|distributed|e2e|xla|gpu|benchmarks|support)/[\w./-]*", text):
            assert (PROJECT / "tests" / text).exists(), text


@cache
def known_flags() -> frozenset[str]:
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    flags = {f"--{name}" for name in DEFAULTS} | {"--help", "--version", "--full", "--files", "--config"}
    for parser in (launch_command_parser(), get_args_parser()):
        flags |= set(parser._option_string_actions)
    for path in (PROJECT / "mtloop" / "cli" / "commands").glob("[a-z]*.py"):
        module = importlib.import_module(f"mtloop.cli.commands.{path.stem}")
        if hasattr(module, "add_flags"):
            parser = Parser(allow_abbrev=False)
            module.add_flags(parser)
            flags |= set(parser._option_string_actions)
    return frozenset(flags)


@every_page
def test_flags_exist(page):
    """Flags in prose, written as code; three are sbatch's, two are pytest's, --flag is none."""
    others = {"--nodes", "--cpus-per-task", "--gpus-per-node", "--strict-markers", "--durations", "--flag"}
    if page.name == "coming-from.md":
        others |= {f"--{name}" for name in foreign_flags()} | {"--adam_", "--no_fp16"}
    for text in codes_of(page):
        if IN_LINE.fullmatch(text):
            continue
        for flag in re.findall(r"(?<![\w-])--[A-Za-z][\w-]*", text):
            assert flag in known_flags() | others, flag


# the pages


def test_readme_is_short():
    assert len(text_of(PROJECT / "README.md").encode()) <= README_BYTES


@every_page
def test_code_blocks_are_fenced_and_name_their_language(page):
    assert {name for name, _ in FENCE.findall(text_of(page))} <= LANGUAGES
    assert not re.search(r"\n\n {4}\S", prose_of(page))


def test_pages_begin_with_what_they_are_for_and_the_readme_links_them():
    readme = text_of(PROJECT / "README.md")
    for page in (PROJECT / "docs").glob("*.md"):
        title, purpose, *_ = text_of(page).split("\n\n")
        assert title.startswith("# ") and purpose.endswith("."), page
        assert f"(docs/{page.name})" in readme


def test_launch_files_and_recipes_are_described():
    launch_files = text_of(PROJECT / "accelerate_configs" / "README.md")
    for path in launch_files_by_name().values():
        assert f"[{path.name}]({path.name})" in launch_files
    recipes = text_of(PROJECT / "docs" / "runs-and-resume.md")
    for path in (PROJECT / "mtloop" / "config" / "recipes").glob("*.yaml"):
        assert f"| `{path.stem}` |" in recipes


def test_images_are_small():
    for path in (PROJECT / "docs" / "images").iterdir():
        assert path.stat().st_size < 100_000


@pytest.mark.parametrize(("script", "name"), [("make_reference", "reference"), ("make_coming_from", "coming-from")])
def test_generated_pages_are_what_the_code_gives(script, name):
    message = f"run `python docs/{script}.py` and commit docs/{name}.md"
    assert load_script(script).page() == text_of(PROJECT / "docs" / f"{name}.md"), message


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, PROJECT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


# Flags of run_translation.py and run_translation_no_trainer.py that are not in TrainingArguments.
OF_THE_SCRIPTS = (
    "model_name_or_path config_name tokenizer_name cache_dir use_fast_tokenizer model_revision token use_auth_token "
    "trust_remote_code source_lang target_lang dataset_name dataset_config_name train_file validation_file test_file "
    "overwrite_cache preprocessing_num_workers max_source_length max_target_length val_max_target_length "
    "pad_to_max_length max_train_samples max_eval_samples max_predict_samples num_beams ignore_pad_token_for_loss "
    "source_prefix forced_bos_token predict_with_generate max_length use_slow_tokenizer max_train_steps "
    "num_warmup_steps model_type checkpointing_steps with_tracking hub_token"
)


@pytest.mark.slow
def test_coming_from_has_every_flag_and_the_defaults_of_the_programs():
    from transformers import HfArgumentParser, Seq2SeqTrainingArguments

    script = load_script("make_coming_from")
    described = {*script.SAME, *script.OTHER_DEFAULT, *foreign_flags()}
    actions = {action.dest: action for action in HfArgumentParser(Seq2SeqTrainingArguments)._actions}
    assert {*OF_THE_SCRIPTS.split(), *actions} - {"help"} <= described
    assert {*script.SAME, *script.OTHER_DEFAULT} <= set(DEFAULTS)
    text = text_of(PROJECT / "docs" / "coming-from.md")
    assert [name for name in described if f"`--{name}`" not in text] == []
    for name, there in script.OTHER_DEFAULT.items():
        if name in actions and re.fullmatch(r"[\d.e-]+", there):
            assert actions[name].default == float(there), name
