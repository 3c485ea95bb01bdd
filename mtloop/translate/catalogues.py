"""Fill the catalogues of a command: find and read them, keep translations in a journal, and write the files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtloop.atomic import append_json_line, checker, read_json_lines, sweep_partials, write_bytes
from mtloop.checkpoint.listing import model_folder
from mtloop.data.entries import content_of
from mtloop.data.files import CATALOGUES, InputFile, unpacked_ending
from mtloop.errors import UserError, check_file, first_line, unwritable
from mtloop.tables import aligned
from mtloop.translate.filling import Document, FillOptions
from mtloop.translate.po import read_po
from mtloop.translate.xliff import read_xliff

if TYPE_CHECKING:
    from mtloop.runtime.ranks import Runtime
    from mtloop.translate.translator import Translation, Translator

_READERS: dict[str, Callable[[InputFile, bytes, FillOptions], Document]] = {"gettext": read_po, "xliff": read_xliff}
_NAMES = {"gettext": "a gettext", "xliff": "an XLIFF"}
FILLABLE = tuple(ending for ending, kind in CATALOGUES.items() if kind in _READERS)
# Texts that are translated and then kept: an interruption loses at most as many.
_BLOCK_SIZE = 512
_KEPT = {"text": str, "is_source_cut": bool, "is_cut": bool, "lost": [str], "is_forced": bool}
_SHAPE = {"key?": str, "translations?": [{"source": str, **_KEPT}]}


@dataclass(frozen=True)
class Job:
    """A catalogue and the file that it is filled into."""

    source: str
    target: Path


def find_jobs(paths: Sequence[str], output: Path, *, is_folder: bool) -> tuple[list[Job], int]:
    """Find the catalogues of files and folders; return them, and the number of other files in the folders.

    Args:
        paths: Files, and folders that are searched with those below them.
        output: The file to write, or the folder, in which folders keep their structure.
        is_folder: Whether the output is a folder.

    Raises:
        UserError: for outputs that are inputs or each other's, and for a file that is not one to fill.
    """
    jobs, num_others = [], 0
    for path in map(Path, paths):
        if path.is_dir():
            if _is_within(output, path):
                raise UserError(f"-o: in the folder of the input (got {output}). Give another folder.")
            files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            found = [file for file in files if unpacked_ending(file.name) in FILLABLE]
            num_others += len(files) - len(found)
            root = output if len(paths) == 1 else output / path.name
            jobs += [Job(str(file), _as_po(root / file.relative_to(path))) for file in found]
        else:
            jobs.append(Job(str(path), _as_po(output / path.name) if is_folder else output))
    if not jobs:
        raise UserError(f"FILE: no file to fill ({', '.join(FILLABLE)}) (got {' '.join(paths)}). Give another folder.")
    for job in jobs:
        _check_kinds(job)
        if check_file("-o", job.target).resolve() == Path(job.source).resolve():
            raise UserError(f"-o: equals the input, which would be lost (got {job.target}). Give another name.")
    targets: dict[Path, Job] = {}
    for job in jobs:
        other = targets.setdefault(job.target.resolve(), job)
        if other is not job:
            raise UserError(
                f"FILE: {other.source} and {job.source} have the same output {job.target}. Translate them one by one."
            )
    return jobs, num_others


def _is_within(path: Path, folder: Path) -> bool:
    return folder.resolve() in (path.resolve(), *path.resolve().parents)


def _as_po(path: Path) -> Path:
    """Return the name of a template's translation."""
    return path.with_suffix(".po") if path.suffix == ".pot" else path


def _check_kinds(job: Job) -> None:
    kinds = [CATALOGUES.get(unpacked_ending(str(path))) for path in (job.source, job.target)]
    if kinds[1] is None:
        raise UserError(f"FILE: not a catalogue, as other files are (got {job.source}). Translate them one by one.")
    if kinds[1] not in _READERS:
        ending = unpacked_ending(str(job.target))
        raise UserError(
            f"-o: {ending} files are read, not written (got {job.target}). Give -o FILE.po or FILE.xlf for an input of "
            "this kind, else FILE.jsonl."
        )
    if kinds[0] != kinds[1]:
        raise UserError(
            f"-o: only {_NAMES[kinds[1]]} file can be filled into {job.target} (got {job.source}). Give an output of "
            "the input's kind, or -o FILE.jsonl."
        )


class Journal:
    """Keeps finished translations in a file until every catalogue of a command is written.

    A command that was interrupted takes them from there, if model and options of the search are the same.
    """

    def __init__(self, path: Path, model: str, options: dict[str, Any]) -> None:
        """Prepare; nothing is read.

        Args:
            path: The file.
            model: What translates: a folder by the sizes and times of its files, or a name.
            options: Whatever else the translations depend on; JSON values.
        """
        folder = Path(model_folder(model))
        states = sorted(
            (one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.glob("*") if one.is_file()
        )
        whole = json.dumps([str(folder.resolve()) if states else model, states, options], sort_keys=True)
        self._path, self._key = path, hashlib.sha256(whole.encode()).hexdigest()
        self.translations: dict[str, Translation] = {}

    def read(self) -> None:
        """Read the translations of an interrupted command; those of other ones are removed."""
        from mtloop.translate.translator import Translation

        first, *blocks = read_json_lines(self._path, checker(_SHAPE)) or [{}]
        if first.get("key") != self._key:
            self.remove()
            return
        for record in (record for block in blocks for record in block.get("translations", [])):
            fields = {name: record[name] for name in _KEPT} | {"lost": tuple(record["lost"])}
            self.translations[record["source"]] = Translation(**fields)

    def add(self, texts: Sequence[str], found: Sequence[Translation]) -> None:
        """Keep translations.

        Raises:
            RunFailed: the file cannot be written.
        """
        pairs = list(zip(texts, found, strict=True))
        records = [{"source": text, **{name: getattr(one, name) for name in _KEPT}} for text, one in pairs]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                append_json_line(self._path, {"key": self._key})
            append_json_line(self._path, {"translations": records})
        except OSError as error:
            raise unwritable(self._path, error) from error
        self.translations.update(pairs)

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Counts:
    """The entries of a catalogue: all that can be translated, filled ones, and those that need a review after it."""

    name: str
    entries: int
    filled: int
    failed: int = 0


class Filling:
    """The catalogues of a command, on its main process."""

    def __init__(self, jobs: Sequence[Job], options: FillOptions, journal: Journal | None = None) -> None:
        """Prepare; nothing is read."""
        self.jobs, self._options, self._journal = jobs, options, journal
        self._contents: dict[Job, bytes] = {}
        self._documents: dict[Job, Document] = {}
        self._waiting: dict[Job, list[str]] = {}
        self.counts: dict[Job, Counts] = {}
        self.notes: list[str] = []
        self.num_known = self.num_cut = 0

    def read(self) -> None:
        """Read all files.

        Raises:
            UserError: naming file and line of what is malformed.
        """
        if self._journal is not None:
            self._journal.read()
        for job in self.jobs:
            file = InputFile(job.source, job.source)
            self._contents[job] = content = content_of(file)
            document = _READERS[CATALOGUES[unpacked_ending(job.source)]](file, content, self._options)
            self._documents[job] = document
            self.counts[job] = Counts(job.source, document.num_entries, document.num_chosen)
            self.notes += [f"{job.source}: {note}" for note in document.notes]
        if self._journal is not None:
            texts = {text for document in self._documents.values() for text in document.sources}
            self.num_known = len(texts & self._journal.translations.keys())

    def pending(self, jobs: Sequence[Job]) -> list[str]:
        """Return the texts of catalogues that are not translated yet, each once, longest first."""
        assert self._journal is not None
        texts = dict.fromkeys(text for job in jobs for text in self._documents[job].sources if text.strip())
        return sorted((text for text in texts if text not in self._journal.translations), key=len, reverse=True)

    def next_block(self, job: Job) -> list[str]:
        """Return the next texts of a catalogue to translate; none if all are."""
        if job not in self._waiting:
            self._waiting[job] = self.pending([job])
        block, self._waiting[job] = self._waiting[job][:_BLOCK_SIZE], self._waiting[job][_BLOCK_SIZE:]
        return block

    def keep(self, texts: Sequence[str], found: Sequence[list[Translation]]) -> None:
        """Keep the best translation of each text."""
        assert self._journal is not None
        self._journal.add(texts, [candidates[0] for candidates in found])

    def write(self, job: Job) -> None:
        """Write a filled catalogue, unless it is there.

        Raises:
            UserError: naming file and line of a translation that its charset cannot hold.
            RunFailed: it cannot be written.
        """
        assert self._journal is not None
        document, content = self._documents.pop(job), self._contents.pop(job)
        target = check_file("-o", job.target)
        if document.num_chosen:
            found = self._journal.translations
            content, num_failed = document.fill(found)
            self.num_cut += sum(
                found[text].is_cut or found[text].is_source_cut for text in set(document.sources) if text.strip()
            )
            self.counts[job] = Counts(job.source, document.num_entries, document.num_chosen, num_failed)
        content = gzip.compress(content, mtime=0) if job.target.suffix.lower() == ".gz" else content
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            sweep_partials(target)
            if target.is_file() and target.read_bytes() == content:
                return
        except OSError as error:
            raise UserError(f"-o {target}: cannot be written ({first_line(error)}). Give another place.") from error
        write_bytes(target, content)

    def finish(self) -> None:
        """Remove the journal: all files are written."""
        assert self._journal is not None
        self._journal.remove()

    def table(self, *, is_dry: bool = False) -> list[str]:
        """Return the lines of the table of all files."""
        counts = list(self.counts.values())
        if len(counts) > 1:
            sums = (sum(getattr(one, name) for one in counts) for name in ("entries", "filled", "failed"))
            counts.append(Counts("all", *sums))
        rows = [["file", "entries", "to fill" if is_dry else "filled", "kept", "failed survival"]]
        rows += [
            [one.name, *(f"{number:,}" for number in (one.entries, one.filled, one.entries - one.filled, one.failed))]
            for one in counts
        ]
        return aligned([row[:-1] for row in rows] if is_dry else rows, left=1)


def fill_files(
    filling: Filling, runtime: Runtime, open_translator: Callable[[], Translator], show: Callable[[int, int], object]
) -> None:
    """Translate and write catalogues, one after the other. Collective.

    Args:
        filling: The catalogues.
        runtime: The ranks: main reads and writes, all translate.
        open_translator: Called if there is something to translate. Collective.
        show: Called with the texts that were translated, and their number.

    Raises:
        UserError: naming file and line, or what is wrong with the model.
    """
    runtime.on_main(filling.read)
    total, done = runtime.on_main(lambda: len(filling.pending(filling.jobs))), 0
    translator = open_translator() if total else None
    for job in filling.jobs:
        while block := runtime.on_main(partial(filling.next_block, job)):
            assert translator is not None
            runtime.on_main(partial(filling.keep, block, translator.translate(block)))
            done += len(block)
            show(done, total)
        runtime.on_main(partial(filling.write, job))
    runtime.on_main(filling.finish)


def journal_path(output: Path, *, is_folder: bool) -> Path:
    """Return where the journal of an output is."""
    name = f".{'' if is_folder else output.name + '.'}mtloop-journal"
    return (output if is_folder else Path(os.path.dirname(output) or ".")) / name
