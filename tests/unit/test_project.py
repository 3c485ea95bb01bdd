"""The files around the code: pinned tools, hooks, the version, package data, CONTRIBUTING.md, the assertion count."""

import fnmatch
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import mtloop
from tests.support.count_assertions import Counts, count, count_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # installed with pytest

PINNED = ("pytest", "pytest-timeout", "ruff", "mypy")


@pytest.fixture(scope="module")
def pyproject(project):
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def requirements(project):
    """The lines of tests/requirements.txt by package."""
    lines = (project / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    words = [line.split("#")[0].strip() for line in lines]
    found = [Requirement(word) for word in words if word and not word.startswith("-r")]
    return {one.name: one for one in found}


# pins and hooks


@pytest.mark.parametrize("name", PINNED)
def test_pins_are_the_installed_minor_versions(requirements, name):
    (pin,) = requirements[name].specifier
    major, minor, *_ = version(name).split(".")
    assert (pin.operator, pin.version) == ("==", f"{major}.{minor}.*"), (
        f"{name} {version(name)} is installed and tests/requirements.txt has {name}{pin}: "
        "pip install -r tests/requirements.txt, or change the pin"
    )


def test_pin_of_ruff_is_its_required_version(requirements, pyproject):
    assert SpecifierSet(pyproject["tool"]["ruff"]["required-version"]) == requirements["ruff"].specifier


def test_hooks_run_the_pinned_tools(project, requirements):
    config = yaml.safe_load((project / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repo,) = config["repos"]
    # A repository with a `rev`, or a hook with an environment, would bring a version that no pin knows.
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    assert [hook["entry"] for hook in repo["hooks"]] == ["ruff check", "ruff format", "mypy"]
    assert {hook["entry"].split()[0] for hook in repo["hooks"]} <= set(PINNED) <= set(requirements)
    # mypy with file names would ignore `files` in its configuration and apply the rules of the package to the tests.
    assert [hook.get("pass_filenames", True) for hook in repo["hooks"]] == [True, True, False]


def test_extras_have_the_versions_that_are_tested(requirements, pyproject):
    by_name = dict(pyproject["project"]["optional-dependencies"])
    (everything,) = map(Requirement, by_name.pop("all"))
    assert (everything.name, everything.extras) == (pyproject["project"]["name"], set(by_name))
    extras = [Requirement(line) for lines in by_name.values() for line in lines]
    assert {extra.name: extra.specifier for extra in extras} == {
        extra.name: requirements[extra.name].specifier for extra in extras
    }


# the version


def test_version_is_read_from_the_package(pyproject):
    assert "version" in pyproject["project"]["dynamic"] and "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "mtloop.__version__"}


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["-m", "mtloop", "--version"], ["torch", "transformers", "numpy"]),
        pytest.param(["train.py", "--version"], ["torch", "accelerate", "datasets"], marks=pytest.mark.slow),
        pytest.param(
            ["-m", "mtloop", "train", "--no_such_flag", "--version"],
            ["torch", "accelerate", "datasets"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mtloop", "train.py", "mtloop train"],
)
def test_version_flag_prints_the_version_without_heavy_imports(project, command, heavy):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=project, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"mtloop {mtloop.__version__}\n"), done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mtloop" in imported or "mtloop.__main__" in imported  # the table is there
    assert not imported & set(heavy)


@pytest.mark.parametrize(
    ("before", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["neither", "count", "policy"],
)
def test_import_limits_spinning_unless_the_user_has(project, before, count):
    both = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in both} | before
    code = "import sys, mtloop, os; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == f"{count}\n"


def test_changelog_has_the_version(project):
    headings = [
        line for line in (project / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## Unreleased"
    assert headings[1].startswith(f"## {mtloop.__version__} ")


# the package


def test_package_data_covers_every_file(project, pyproject):
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    package = project / "mtloop"
    others = [
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    ]
    assert package / "py.typed" in others
    for path in others:
        name = ".".join(path.parent.relative_to(project).parts)
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns.get(name, [])), path


def test_packages_are_those_of_the_tree(project, pyproject):
    """The launch files are one too: its folder is at the top of the clone."""
    setuptools = pyproject["tool"]["setuptools"]
    folders = {path.parent for path in (project / "mtloop").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    names = {".".join(folder.relative_to(project).parts) for folder in folders}
    assert setuptools["package-dir"] == {"mtloop.accelerate_configs": "accelerate_configs"}
    assert sorted(setuptools["packages"]) == sorted(names | {"mtloop.accelerate_configs"})


def test_contributing_names_every_module(project):
    text = (project / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = [path.name for path in (project / "mtloop").glob("*.py")]
    folders = [f"{path.parent.name}/" for path in (project / "mtloop").glob("*/__init__.py")]
    assert [name for name in [*files, *folders] if f"`{name}`" not in text] == []


# the count of assertions


def test_count_assertions_reads_the_syntax_tree():
    source = (
        "def test_it():\n"
        "    '''assert in a text, pytest.raises too'''\n"
        "    assert 1 == 1, 'assert'\n"
        "    with pytest.raises(ValueError, match='x') as caught, other.raises(KeyError):\n"
        "        assert caught\n"
        "    for raises in []:\n"
        "        raises(assertion)\n"
    )
    assert count(source) == Counts(asserts=2, raises=1)


def test_count_assertions_covers_subfolders(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "test_it.py").write_text("assert True\n")
    (tmp_path / "notes.md").write_text("assert True\n")
    assert count_folder(tmp_path) == {"inner/test_it.py": Counts(asserts=1, raises=0)}
