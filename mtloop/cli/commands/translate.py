"""Translate files, standard input (-) or --text.

Translate files in order, every line once. `accelerate launch -m mtloop translate ...` spreads them over processes.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mtloop.atomic import hold, partial_name, sweep_partials
from mtloop.cli.filling import add_fill_flags, check_fill, check_without_catalogues, fills_catalogues, run_fill
from mtloop.cli.flags import (
    add_model_flags,
    add_table_flags,
    check_keys,
    dialect_of,
    number_type,
    own_places,
    start_runtime,
)
from mtloop.cli.status import StdoutClosed, writing
from mtloop.config.fields import is_unicode
from mtloop.config.settings import Config
from mtloop.data.files import STDIN, kind_of
from mtloop.errors import UserError, check_file
from mtloop.languages import match_language
from mtloop.run_folder import stored_config

if TYPE_CHECKING:
    from mtloop.data.readers import Records
    from mtloop.data.texts import Entry
    from mtloop.translate.files import Writer
    from mtloop.translate.translator import Translation

# Texts that are sorted and batched together: more need fewer padded tokens, and wait longer for the first.
BLOCK_SIZE = 4096
MAX_SHOWN = 5


@dataclass
class Warnings:
    """Texts and translations of a file that were cut or changed: the numbers of the entries, from 1."""

    broken_sources: list[int] = field(default_factory=list)
    cut_sources: list[int] = field(default_factory=list)
    cut_translations: list[int] = field(default_factory=list)

    def look_at(self, texts: list[str], found: list[list[Translation]], *, first: int) -> None:
        """Record which texts and translations of a block were cut or changed."""
        for number, (text, candidates) in enumerate(zip(texts, found, strict=True), start=first):
            if not is_unicode(text):
                self.broken_sources.append(number)
            if candidates[0].is_source_cut:
                self.cut_sources.append(number)
            if candidates[0].is_cut:
                self.cut_translations.append(number)

    def lines(self, name: str, translator: Any) -> list[str]:
        """Report how many texts and translations were cut or changed, and which."""
        source_length = f"--max_source_length {translator.max_source_length}"
        target_length = f"--max_target_length {translator.max_target_length}"
        lines = []
        for numbers, what in (
            (self.broken_sources, "with half a surrogate pair, read as U+FFFD"),
            (self.cut_sources, f"over the longest source and cut ({source_length})"),
            (self.cut_translations, f"as long as a translation may be, perhaps unfinished ({target_length})"),
        ):
            if numbers:
                shown = ", ".join(map(str, numbers[:MAX_SHOWN])) + (" ..." if len(numbers) > MAX_SHOWN else "")
                lines.append(f"{name}: {len(numbers):,} {what}: number {shown}")
        return lines


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add(
        "files",
        metavar="FILE",
        nargs="*",
        help="as train.py reads: .jsonl, .json, .csv, .tsv, .po, .tmx, .xliff, .parquet, all but the last also "
        "packed (.gz); any other: lines; - is standard input; with -o FOLDER a folder of catalogues too",
    )
    add("--text", action="append", default=[], help="a sentence; may be given more than once")
    add("-o", "--output", metavar="OUT", help="the output, in the format of its ending, a catalogue that is filled "
        "too; for several files a folder (none: standard output)")  # fmt: skip
    add(
        "--model",
        required=True,
        metavar="M",
        help="a run folder, a checkpoint, an export, any folder, or a Hub name[@revision]",
    )
    add("--engine", choices=("transformers", "ctranslate2"), help="ctranslate2 takes a folder of `mtloop export`, and "
        "computes as that was quantised (none: what --model is for)")  # fmt: skip
    add("--source_lang", metavar="CODE", help="for models of several languages")
    add("--target_lang", metavar="CODE", help="for models of several languages")
    add("--source_prefix", metavar="TEXT", help="put before every text, for T5 models")
    add("--source_key", metavar="KEY", help="language of the text in a row (none: source_lang)")
    add("--source_column", metavar="NAME", help="column of the text in a row, a number with --no_header "
        "(none: source_lang, source, text)")  # fmt: skip
    add_table_flags(parser)
    add("--overwrite_column", action="store_true", help="replace a column hypothesis (or score) of the input")
    add(
        "--n_best",
        type=number_type("n_best"),
        default=1,
        metavar="N",
        help="translations of each text, as `number ||| translation`",
    )
    add("--scores", action="store_true", help="add the log-probability per token")
    add(
        "--max_source_length",
        type=number_type("max_source_length"),
        metavar="N",
        help="longest text, in tokens (none: all that the model takes)",
    )
    add(
        "--max_target_length",
        type=number_type("max_target_length"),
        metavar="N",
        help="longest translation, in tokens (none: the model's own)",
    )
    add_fill_flags(parser)
    add_model_flags(parser)


def _check(given: argparse.Namespace) -> None:
    if bool(given.files) == bool(given.text):
        raise UserError(
            "FILE, --text: expected exactly one of them. Give FILE... (- for standard input), or --text SENTENCE."
        )
    if given.output is None and sys.__stdout__ is None:
        raise UserError("-o: missing, and standard output is closed. Give -o OUT.")
    given.is_fill = fills_catalogues(given)
    if given.is_fill:
        check_fill(given)
        return
    check_without_catalogues(given)
    if len(given.files) > 1 and (given.output is None or Path(given.output).is_file()):
        raise UserError("-o: several files need a folder. Give -o FOLDER.")
    names = [Path(name).name for name in given.files]
    if len(set(names)) < len(names):
        raise UserError("FILE: two files have the same name, and so would their outputs. Translate them one by one.")
    for name in given.files:
        if name != STDIN and (Path(name).is_dir() or not Path(name).exists()):  # a pipe is read as standard input is
            problem = "a folder needs -o FOLDER" if Path(name).is_dir() else "no such file"
            raise UserError(f"FILE: {problem} (got {name}). Give a file.")
        kind_of("FILE", [name], [given.row_lang])
        if given.output is not None:
            if check_file("-o", _output_of(name, given)).resolve() == Path(name).resolve():
                raise UserError(f"-o: equals the input (got {given.output}). Give another name.")
            kind_of("-o", [str(_output_of(name, given))], given.output_languages)
    if given.text and given.output is not None:
        check_file("-o", _output_of(STDIN, given))


def _output_of(name: str, given: argparse.Namespace) -> Path:
    output = Path(given.output)
    is_folder = len(given.files) > 1 or output.is_dir() or given.output.endswith("/")
    return output / (Path(name).name if name != STDIN else "stdin.txt") if is_folder else output


def _check_languages(given: argparse.Namespace, trained: Config | None) -> None:
    """Refuse languages that the model of a run was not trained on."""
    if trained is None or trained.data.pairs or trained.model.model_name_or_path:  # a pretrained one may support more
        return
    for flag in ("source_lang", "target_lang"):
        asked, own = getattr(given, flag), getattr(trained.data, flag)
        if asked and own and not match_language(asked, [own]):
            raise UserError(
                f"--{flag}: the model translates {trained.data.source_lang} to {trained.data.target_lang} "
                f"(got {asked!r}). Leave it out, or give another --model."
            )


def run(given: argparse.Namespace) -> None:
    """Run the command. Collective: every process of a launch calls it."""
    trained = stored_config(given.model)
    pairs = trained.data.languages if trained is not None else ((None, None),)
    check_keys(given)
    own = own_places(given, trained.data) if trained is not None else {}
    given.row_lang = given.source_key or own.get("source_key") or given.source_lang or pairs[0][0]
    if pairs[0][0] is None and given.source_lang is None:
        given.source_lang = given.source_key
    given.output_languages = [given.target_lang, *(target for _, target in pairs)]
    _check(given)
    _check_languages(given, trained)
    given.column = given.source_column or own.get("source_column")
    given.dialect = dialect_of(given, trained)
    names = ("model", "source_lang", "target_lang", "source_prefix", "num_beams", "n_best", "max_tokens_per_batch",
             "max_source_length", "max_target_length", "trust_remote_code", "no_verify", "engine")  # fmt: skip
    options = {name: getattr(given, name) for name in names}
    if given.is_fill:
        run_fill(given, options)
        return
    from mtloop.translate.translator import Translator

    runtime = start_runtime(given)
    try:
        translator = Translator(**options, runtime=runtime)
        for name in given.files or [None]:
            _translate_file(translator, name, given)
    finally:
        runtime.close()


def _translate_file(translator: Any, name: str | None, given: argparse.Namespace) -> None:
    """Translate one file, or the sentences of --text (None), block by block. Main reads and writes; all translate."""
    from tqdm.auto import tqdm

    from mtloop.data.rows import note_lines
    from mtloop.data.texts import Entry, Texts

    runtime = translator.runtime
    warnings, num_done = Warnings(), 0
    place = {"column": given.column, "source_lang": given.row_lang, "source_key": given.source_key}
    texts = Texts(name, **place, dialect=given.dialect) if name is not None else None
    # Nothing is opened before main asks for the first.
    entries = iter(texts if texts is not None else [Entry(text, "\n") for text in given.text])
    is_typed = name == STDIN and sys.stdin is not None and sys.stdin.isatty()
    size = 1 if is_typed else BLOCK_SIZE
    sink = _Sink(name, given, None if texts is None else texts.records)
    # No bar is drawn into what is typed, and none for a sentence of the command line.
    has_bar = runtime.is_main and not is_typed and name is not None and sys.stderr.isatty()
    bar = tqdm(unit="line", disable=not has_bar, dynamic_ncols=True)
    with closing(sink), closing(bar):
        while block := runtime.on_main(lambda: list(islice(entries, size))):
            sources = [entry.text for entry in block]
            found = translator.translate(sources)
            warnings.look_at(sources, found, first=num_done + 1)
            num_done += len(block)
            runtime.on_main(lambda block=block, found=found: sink.write(block, found))
            bar.update(len(block))
        runtime.on_main(sink.publish)
    if runtime.is_main:
        notes = [] if texts is None else [f"{name}: {line}" for line in note_lines(texts.notes)]
        for line in [*warnings.lines(name or "--text", translator), *notes]:
            print(f"mtloop: warning: {line}", file=sys.stderr)


class _Sink:
    """Writes translations to standard output, or to a file that appears when it is complete."""

    def __init__(self, name: str | None, given: argparse.Namespace, records: Records | None) -> None:
        self._path = None if given.output is None else _output_of(name or STDIN, given)
        self._target = None if self._path is None else check_file("-o", self._path)
        self._kind = str(self._path) if self._path is not None else "stdout.txt"
        self._options: dict[str, Any] = {
            "n_best": given.n_best,
            "with_scores": given.scores,
            "overwrites": given.overwrite_column,
            "languages": given.output_languages,
        }
        self._records = records
        self._file: BinaryIO | None = None
        self._held: int | None = None
        self._writer: Writer | None = None

    def write(self, block: list[Entry], found: list[list[Translation]]) -> None:
        """Write a block.

        Raises:
            UserError: naming the output and the reason.
        """
        from mtloop.translate.files import Writer

        target = self._path or "(standard output)"
        with writing(target):
            try:
                if self._writer is None:
                    if self._target is not None:
                        self._target.parent.mkdir(parents=True, exist_ok=True)
                        sweep_partials(self._target)
                    self._file = sys.stdout.buffer if self._target is None else partial_name(self._target).open("wb")
                    self._held = hold(Path(self._file.name)) if self._target is not None else None
                    self._writer = Writer(self._file, self._kind, **self._options)
                self._writer.write(block, found, self._records)
            except BrokenPipeError:
                raise StdoutClosed from None
            except UnicodeEncodeError as error:
                problem = f"half a surrogate pair in {block[0].where or 'the input'} or below"
                raise UserError(f"-o {target}: UTF-8 cannot hold {problem}. Give -o FILE.jsonl.") from error

    def publish(self) -> None:
        """Let the file appear; an empty input makes an empty output."""
        if self._target is None:
            return
        if self._writer is None:
            self.write([], [])
        assert self._file is not None and self._writer is not None
        with writing(self._path):
            self._writer.finish(self._records)
            self._file.close()
            os.replace(self._file.name, self._target)

    def close(self) -> None:
        """Remove a file that was not published."""
        if self._file is not None and self._path is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
        if self._held is not None:
            os.close(self._held)
