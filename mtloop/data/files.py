"""Find the user's files, identify them by content, open them, and decode their lines. Must not know what a row is."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from mtloop.errors import UserError, first_line
from mtloop.languages import base_code

_KINDS = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}
# Files of localisers, by the ending: what catalogues.py reads. Files of these kinds can be mixed.
CATALOGUES = {
    ".po": "gettext",
    ".pot": "gettext",
    ".mo": "compiled",
    ".gmo": "compiled",
    ".tmx": "tmx",
    ".xlf": "xliff",
    ".xliff": "xliff",
}
CATALOGUE = "catalogue"
_KINDS |= dict.fromkeys(CATALOGUES, CATALOGUE)
# Formats whose lines are not texts. Other endings are plain text: .txt, languages such as .en, and any other.
_UNSUPPORTED = {
    "an XLIFF file of another program": "sdlxliff mxliff mqxliff mqxlz sdlppx txlf",
    "a Qt translation file": "ts qm qph",
    "a term base": "tbx",
    "XML": "xml sgm sgml rdf xsl xslt resx resw dita dtd svg plist",
    "a table of resources": "properties strings stringsdict xcstrings arb resjson rc ftl lang ini cfg toml yml yaml",
    "a subtitle file": "srt vtt ssa ass sbv ttml dfxp",
    "a web page": "html htm xhtml mhtml mht",
    "a document": "docx doc docm odt rtf pdf epub mobi azw3 tex xlsx xls xlsm ods pptx ppt odp odg idml dotx",
    "source code": "js mjs jsx tsx css py java rb php vue svelte ipynb sql",
    "an archive": "zip tar tgz tbz2 txz bz2 xz zst lz4 lzma 7z rar jar",
    "binary data": "arrow feather orc avro sqlite sqlite3 db pickle pkl npy npz h5 bin pth ckpt safetensors onnx "
    "model png jpg jpeg gif webp mp3 mp4 wav",
}
_FORMATS = {f".{ending}": name for name, endings in _UNSUPPORTED.items() for ending in endings.split()}
_CONVERT = "Convert it to .jsonl, .csv, .tsv or .parquet, or to plain text with one sentence a line."
# How files begin whose content is not text, or not what their name says.
_MAGIC_BYTES = {
    rb"PK\x03\x04": ("a zip archive or office document", _CONVERT),
    rb"\x1f\x8b": ("a gzip file", "Rename it to end in .gz."),
    rb"BZh\d1AY&SY|\xfd7zXZ|\x28\xb5\x2f\xfd": ("a packed file", "Unpack it, or pack it by gzip as .gz."),
    rb"PAR1[\x00-\x1f]": ("a Parquet file", "Rename it to end in .parquet."),
    rb"%PDF-\d|\{\\rtf\d|ARROW1\x00": ("a document or binary file", _CONVERT),
    rb"\xde\x12\x04\x95|\x95\x04\x12\xde": ("a compiled gettext catalogue", "Rename it to end in .mo."),
    rb"\xff\xfe|\xfe\xff|[^\x00]\x00[^\x00]\x00|\x00[^\x00]\x00[^\x00]|\x00\x00": (
        "not UTF-8 but UTF-16",
        "Convert the file, for example with iconv.",
    ),
}
# How the lines of plain text begin, without blank lines and comments, if they are those of another format.
_MARKUP = {
    r"<(\?xml|!doctype|tmx|xliff|ts|resources|html)[\s>]": ("XML or a web page", _CONVERT),
    r"webvtt\b|\d+\s*\n\s*(\d+:)?\d\d:\d\d[,.]\d{3} -->": ("a subtitle file", _CONVERT),
    r"(domain|msgctxt|msgid)\s*\"": ("a gettext catalogue", "Rename it to end in .po."),
}
_NUM_MARKUP_LINES, _MAX_SHOWN = 2, 40
# The name of standard input.
STDIN = "-"
_HASH_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class CorruptArchive(UserError):
    """Raised for a zip archive that cannot be read: the caller may have to delete a download."""


@dataclass(frozen=True)
class InputFile:
    """One input file, as it was when it was identified.

    Attributes:
        path: The file that is read.
        name: Its name in messages.
        sha256: Of its bytes, hexadecimal; empty if it was not identified.
        size: In bytes.
        member: The file's name inside, if `path` is a zip archive.
    """

    path: str
    name: str
    sha256: str = ""
    size: int = 0
    member: str | None = None

    @property
    def record(self) -> dict[str, Any]:
        """Return the entry of the report."""
        return {"path": self.name, "size": self.size, "sha256": self.sha256}


def find_files(flag: str, patterns: list[str]) -> list[str]:
    """Expand globs in the order given, the matches of each in alphabetical order.

    Raises:
        UserError: for a missing file or a pattern without matches.
    """
    paths: list[str] = []
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            problem = "no file matches this pattern" if glob.has_magic(pattern) else "no such file"
            raise UserError(
                f"{flag}: {problem} (got {pattern}). Check the path; the working directory is {os.getcwd()}."
            )
        matches = [path for match in matches for path in _catalogues_in(match) or [match]]
        if folders := [path for path in matches if os.path.isdir(path)]:
            raise UserError(
                f"{flag}: expected a file, or a folder of catalogues ({' '.join(CATALOGUES)}) (got {folders[0]}). Give "
                f"its files ({folders[0].rstrip('/')}/*.jsonl), or --dataset_name with a data set folder."
            )
        if pipes := [path for path in matches if not os.path.isfile(path)]:
            raise UserError(
                f"{flag}: expected a file, not a pipe or device, which cannot be read twice (got {pipes[0]}). Write "
                "its content to a file."
            )
        paths.extend(matches)
    return paths


def _catalogues_in(path: str) -> list[str]:
    """Return the catalogues in a folder and those below it, in alphabetical order; none for a file."""
    files = sorted(glob.glob(os.path.join(glob.escape(path), "**"), recursive=True)) if os.path.isdir(path) else []
    return [file for file in files if unpacked_ending(file) in CATALOGUES and os.path.isfile(file)]


def kind_of(flag: str, paths: list[str], languages: Iterable[str | None] = ()) -> str:
    """Return the kind of all files: json, jsonl, csv, tsv, parquet, catalogue or text.

    Args:
        flag: The flag that named the files, for messages.
        paths: The names of the files, which need not exist.
        languages: Codes or names; a file that ends in the code of one is plain text (.ts is Tsonga, or of Qt).

    Raises:
        UserError: for mixed kinds, unsupported formats, or gzipped parquet.
    """
    codes = {f".{code}" for language in languages if language for code in (base_code(language), language.lower())}
    kinds: dict[str, str] = {}
    for path in paths:
        is_gzip = path.lower().endswith(".gz")
        ending = unpacked_ending(path)
        kind = _KINDS.get(ending, "text")
        if ending in _FORMATS and ending not in codes:
            raise UserError(f"{flag}: {_FORMATS[ending]} ({ending}) is not supported (got {path}). {_CONVERT}")
        if is_gzip and kind == "parquet":
            raise UserError(f"{flag}: Parquet is compressed inside, not by gzip (got {path}). Unpack the .gz.")
        kinds.setdefault(kind, path)
    if len(kinds) > 1:
        mixed = ", ".join(f"{path} is {kind}" for kind, path in kinds.items())
        raise UserError(f"{flag}: the files of one split must be of one kind (got {mixed}). Convert them to one kind.")
    return next(iter(kinds))


def unpacked_ending(path: str) -> str:
    """Return the ending of a name, without .gz: .po for APP.PO.gz."""
    return Path(path.lower().removesuffix(".gz")).suffix


def identify(path: str, *, flag: str, name: str | None = None) -> InputFile:
    """Return a file with its size and hash.

    Raises:
        UserError: naming `flag` and the path if the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UserError(f"{flag}: cannot read {path} ({first_line(error)}). Check its permissions.") from error
    return InputFile(path, name or path, digest.hexdigest(), size)


@contextmanager
def reading(file: InputFile) -> Iterator[IO[bytes]]:
    """Open a file for its unpacked bytes; errors while it is open become a UserError.

    Raises:
        CorruptArchive: for a corrupt zip archive.
        UserError: for a corrupt .gz, and for the errors of the system.
    """
    try:
        if file.path == STDIN:
            if sys.stdin is None:
                raise UserError("FILE: standard input is closed (got -). Name a file, or open standard input.")
            yield sys.stdin.buffer
        elif file.member:
            with zipfile.ZipFile(file.path) as archive, archive.open(file.member) as member:
                yield member
        elif file.path.lower().endswith(".gz"):
            with gzip.open(file.path, "rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            with open(file.path, "rb") as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if file.member:
            raise CorruptArchive(f"{file.name}: corrupt zip archive ({error})") from error
        raise UserError(f"{file.name}: corrupt gzip file ({error}). Copy or download it again.") from error
    except OSError as error:
        raise UserError(f"{file.name}: cannot read it ({first_line(error)}). Check its permissions.") from error


def read_lines(file: InputFile) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its ending); only a newline ends a line, and a BOM at the start is skipped.

    Raises:
        UserError: "path:LINE: ..." for bytes that are not UTF-8.
    """
    with reading(file) as stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                check_magic(file, raw)
                raw = raw.removeprefix(_BOM)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise not_decodable(file, number, error) from error
            yield number, line


def read_text(file: InputFile) -> Iterator[tuple[int, str]]:
    """Yield the lines of plain text as read_lines does; those of a corpus in an archive are what its publisher says.

    Raises:
        UserError: as read_lines, and for the text of another format: its markup must not be translated.
    """
    head: list[str] = []
    for number, line in read_lines(file):
        if not file.member and len(head) < _NUM_MARKUP_LINES and line.strip() and not line.startswith("#"):
            head.append(line)
            for pattern, (name, remedy) in _MARKUP.items():
                if re.match(pattern, "".join(head).lstrip(), re.IGNORECASE):
                    got = line.strip()[:_MAX_SHOWN]
                    raise UserError(f"{file.name}:{number}: {name} is not supported as lines (got {got!r}). {remedy}")
        yield number, line


def text_lines(file: InputFile) -> Iterator[str]:
    """Yield the lines of a text file without their endings."""
    for _, line in read_text(file):
        yield without_ending(line)


def without_ending(line: str) -> str:
    """Remove the end of a line: \\n or \\r\\n alone; a form feed or U+2028 within a text is kept."""
    return line[:-2] if line.endswith("\r\n") else line.removesuffix("\n")


def check_magic(file: InputFile, first: bytes) -> None:
    """Refuse a file whose first bytes are those of another format.

    Raises:
        UserError: with the name of the format.
    """
    for pattern, (name, remedy) in _MAGIC_BYTES.items():
        if re.match(pattern, first, re.DOTALL):
            raise UserError(f"{file.name}:1: {name} (got the first bytes {first[:4]!r}). {remedy}")


def not_decodable(file: InputFile, line: int, error: UnicodeDecodeError, charset: str = "UTF-8") -> UserError:
    """Return the error for bytes that are not in this charset."""
    bad = error.object[error.start : error.start + 1].hex()
    return UserError(f"{file.name}:{line}: not {charset} (got byte 0x{bad}). Convert the file, for example with iconv.")
