"""The flags of `mtloop translate` that fill catalogues, their checks, and the table at the end."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.cli.flags import start_runtime
from mtloop.data.files import CATALOGUE, STDIN, kind_of
from mtloop.errors import UserError

if TYPE_CHECKING:
    from mtloop.translate.filling import FillOptions
    from mtloop.translate.translator import Translator

_SWITCHES = ("retranslate", "retranslate_fuzzy", "no_fuzzy", "dry_run")
# What a translation depends on, beside the model.
_OF_SEARCH = ("source_lang", "target_lang", "source_prefix", "num_beams", "max_source_length", "max_target_length",
              "engine")  # fmt: skip


def add_fill_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of filling catalogues."""
    helps = (
        "of a catalogue, translate every entry (none: untranslated ones)",
        "of a catalogue, translate fuzzy entries too",
        "of a catalogue, do not mark what is filled as fuzzy; where a placeholder is lost it is",
        "of a catalogue, count what would be filled, and write nothing",
    )
    for name, text in zip(_SWITCHES, helps, strict=True):
        parser.add_argument(f"--{name}", action="store_true", help=text)


def fills_catalogues(given: argparse.Namespace) -> bool:
    """Return True if the output is a catalogue, or a folder of them."""
    if given.output is None or not given.files:
        return False
    if any(Path(name).is_dir() for name in given.files):
        return True
    names = [Path(name).name for name in given.files] if _is_folder(given) else [given.output]
    return any(kind_of("-o", [name], given.output_languages) == CATALOGUE for name in names if name != STDIN)


def _is_folder(given: argparse.Namespace) -> bool:
    has_several = len(given.files) > 1 or any(Path(name).is_dir() for name in given.files)
    return has_several or Path(given.output).is_dir() or given.output.endswith("/")


def check_without_catalogues(given: argparse.Namespace) -> None:
    """Refuse the flags of filling for another output.

    Raises:
        UserError: naming the flag.
    """
    for name in _SWITCHES:
        if getattr(given, name):
            raise UserError(
                f"--{name}: needs a catalogue as output (got {given.output or 'none'}). Give -o FILE.po or .xlf."
            )


def check_fill(given: argparse.Namespace) -> None:
    """Check the flags and the files, and find the catalogues (given.jobs).

    Raises:
        UserError: naming the flag or the file.
    """
    for name, usual in (("n_best", 1), ("scores", False), ("overwrite_column", False), ("source_column", None),
                        ("source_key", None)):  # fmt: skip
        if (value := getattr(given, name)) != usual:
            raise UserError(f"--{name}: a catalogue holds one translation of each text (got {value}). Leave it out.")
    for name in given.files:
        if name == STDIN or not Path(name).exists():
            problem = "standard input cannot be filled" if name == STDIN else "no such file"
            raise UserError(
                f"FILE: {problem} (got {name}). Give a .po, .pot, .xlf or .xliff file, or a folder of them."
            )
    from mtloop.translate.catalogues import find_jobs

    given.jobs, given.num_others = find_jobs(given.files, Path(given.output), is_folder=_is_folder(given))


def _options(given: argparse.Namespace) -> FillOptions:
    from mtloop.translate.filling import FillOptions

    target_lang = next((language for language in given.output_languages if language), None)
    switches = {name: getattr(given, name) for name in _SWITCHES if name != "dry_run"}
    return FillOptions(target_lang=target_lang, **switches)


def run_fill(given: argparse.Namespace, translator_options: dict[str, Any]) -> None:
    """Fill the catalogues of given.jobs, or count what would be filled. Collective.

    Args:
        given: The flags, after check_fill.
        translator_options: What Translator is opened with.

    Raises:
        UserError: naming file and line, or the flag.
    """
    from mtloop.translate.catalogues import Filling, Journal, fill_files, journal_path

    if given.dry_run:
        if os.environ.get("RANK", "0") == "0":
            filling = Filling(given.jobs, _options(given))
            filling.read()
            _print(filling, given)
        return
    from tqdm.auto import tqdm

    from mtloop.translate.translator import Translator

    runtime = start_runtime(given)
    path = journal_path(Path(given.output), is_folder=_is_folder(given))
    journal = Journal(path, given.model, {name: getattr(given, name) for name in _OF_SEARCH})
    filling = Filling(given.jobs, _options(given), journal)
    has_bar = runtime.is_main and sys.stderr.isatty()

    def open_translator() -> Translator:
        return Translator(**translator_options, prefers_surviving=True, runtime=runtime)

    try:
        with closing(tqdm(unit="text", disable=not has_bar, dynamic_ncols=True)) as bar:

            def show(done: int, total: int) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            fill_files(filling, runtime, open_translator, show)
        runtime.on_main(lambda: _print(filling, given))
    except KeyboardInterrupt:
        if runtime.is_main and path.exists():
            print("mtloop: finished translations are kept: give the same command again to continue", file=sys.stderr)
        raise
    finally:
        runtime.close()


def _print(filling: Any, given: argparse.Namespace) -> None:
    lines = filling.table(is_dry=given.dry_run)
    if given.num_others:
        lines.append(f"left out: {given.num_others:,} other files in the folders")
    if filling.num_cut:
        lengths = "--max_source_length, --max_target_length"
        lines.append(f"{filling.num_cut:,} translations are cut, or may be unfinished ({lengths})")
    if filling.num_known:
        lines.append(f"{filling.num_known:,} translations were kept from an interrupted run")
    print("\n".join([*lines, *filling.notes]))
