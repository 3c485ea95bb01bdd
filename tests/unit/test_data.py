"""Test data.load: every source gives the same rows, unchanged, and the cache is never stale."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtloop.config.inputs import DataConfig
from mtloop.data.files import InputFile
from mtloop.data.load import Corpus, describe, load_corpus, load_scored_rows
from mtloop.data.readers import Records
from mtloop.errors import RunFailed, UserError

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"
# What a careless reader alters: outer space, no-break space, line separators of Unicode, quotes, tabs, both newlines.
PAIRS = [
    ("  Open \u201cfile\u201d: ", "\u00a0Ouvrir\u00a0: "),
    ("a\nb\n", "c\n\nd"),
    ('say "hi", then\tgo', "l'\u00e9t\u00e9, \U0001f600"),
    ("x\u2028y\x0bz\x85", "w\u2029v\x0cu\x1c"),
    ("cr\r\nlf", "one"),
    ("1", "null"),
]
TRANSLATIONS = [{"id": str(number), "translation": {"en": en, "fr": fr}} for number, (en, fr) in enumerate(PAIRS)]
RECORDS = [{"en": en, "fr": fr} for en, fr in PAIRS]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


def load(*train_file: str, **fields: Any) -> Corpus:
    """Load English to French; the default validation file is the training file."""
    files = list(train_file) or None
    if "validation_split" not in fields and files:
        fields.setdefault("validation_file", files)
    fields = {"source_lang": "en", "target_lang": "fr", "train_file": files, **fields}
    return load_corpus(DataConfig(**fields))


def error_of(*train_file: str, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*train_file, **fields)
    message = str(caught.value)
    assert "\n" not in message and "\r" not in message
    return message


def texts(rows: datasets.Dataset) -> list[tuple[str, str]]:
    return list(zip(rows["source"][:], rows["target"][:], strict=True))


def json_lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def delimited(delimiter: str, rows: list[dict[str, str]] = RECORDS) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def write(name: str, content: bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


FORMATS = {
    "lines.jsonl": json_lines(TRANSLATIONS),
    "blank.jsonl": b"\xef\xbb\xbf\n" + json_lines(TRANSLATIONS).replace(b"\n", b"\r\n \n"),
    "lines.json": json_lines(TRANSLATIONS),
    "columns.jsonl": json_lines(RECORDS),
    "array.json": json.dumps(TRANSLATIONS).encode(),
    "pretty.json": b"\xef\xbb\xbf" + json.dumps(TRANSLATIONS, indent=2, ensure_ascii=False).encode(),
    "data.json": json.dumps({"version": 1, "data": TRANSLATIONS, "more": [2]}).encode(),
    "prettydata.json": json.dumps({"data": RECORDS}, indent=1).encode(),
    "table.csv": delimited(","),
    "bom.csv": b"\xef\xbb\xbf" + delimited(","),
    "table.tsv": delimited("\t"),
    "rows.parquet": parquet(TRANSLATIONS),
    "columns.parquet": parquet(RECORDS),
}


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_load_corpus_reads_each_format_unchanged(name: str, packing: str) -> None:
    if packing and name.endswith(".parquet"):
        assert "Unpack the .gz" in error_of(write(name + packing, FORMATS[name]))
        return
    fields = {"quoting": "csv"} if name.endswith(".tsv") else {}
    corpus = load(write(name + packing, FORMATS[name]), **fields)
    assert corpus.train.column_names == ["index", "source", "target"]
    assert corpus.train.features["index"].dtype == "int64"
    assert corpus.train["index"][:] == list(range(len(PAIRS)))
    assert texts(corpus.train) == PAIRS
    assert corpus.test is None
    assert corpus.train.cache_files, "rows must be memory-mapped"


def test_read_tsv_keeps_quotes() -> None:
    pairs = [('"Open the file', "Ouvrir"), ("close", "fermer"), ('save "', "enregistrer"), ('"Hi"', '"Salut" dit-il')]
    pairs += [(" a\rb\x0b ", "c\u2028d"), ("1", "null")]
    content = "".join("\t".join(pair) + "\n" for pair in [("en", "fr"), *pairs])
    for ending in ("\n", "\r\n"):
        corpus = load(write("t.tsv", content.replace("\n", ending).encode()))
        assert texts(corpus.train) == pairs
        assert corpus.report["counts"]["train"] == {"loaded": 6, "dropped": {}, "kept": 6}
    # As CSV, the first three rows are one, and the fourth is malformed.
    assert "t.tsv:5: malformed row" in error_of("t.tsv", quoting="csv")
    assert texts(load(write("t.csv", b'en,fr\n"a,"b"\n'), quoting="none").train) == [('"a', '"b"')]


def test_doubtful_quotes_of_tables_are_counted() -> None:
    content = b'en,fr,note\n"a\nb",c,\nd,e,"x\r\ny"\nf,g,"h ""i"""\n,"j\nk",\n'
    corpus = load(write("t.csv", content))
    assert texts(corpus.train) == [("a\nb", "c"), ("d", "e"), ("f", "g")]
    assert corpus.report["counts"]["train"] == {
        "loaded": 4, "dropped": {"empty": 1}, "kept": 3, "notes": {"spans_lines": 3},
    }  # fmt: skip
    assert describe(corpus.report)[1] == (
        "train: 3 rows with a quoted field that spans lines; if the quotes are text, give --quoting none"
    )
    # Quoted by a writer of CSV; the other quotes are ordinary in texts.
    table = b'en\tfr\n"a ""b"""\tc\n"d"\t""\n"e" ""f""\t"g\n'
    report = load(write("t.tsv", table)).report
    assert report["counts"]["train"]["notes"] == {"doubled_quotes": 1}
    assert describe(report)[1].endswith("if it is quoted as CSV, give --quoting csv")
    write("q.tsv", table.partition(b'"d"')[0])
    assert texts(load("q.tsv", quoting="csv", delimiter="tab").train) == [('a "b"', "c")]


@pytest.mark.slow
def test_table_without_header_and_with_other_delimiter() -> None:
    columns = {"source_column": "2", "target_column": "4"}
    write("t.tsv", b"1276\tLet's try.\t77\tEssayons.\n1277\tOh!\t78\tEh !\n")  # as Tatoeba exports pairs
    assert texts(load("t.tsv", no_header=True, **columns).train) == [("Let's try.", "Essayons."), ("Oh!", "Eh !")]
    assert "Choose from: 1, 2, 3, 4" in error_of("t.tsv", no_header=True, source_column="2", target_column="5")
    assert error_of("t.tsv", **columns).endswith("or give --no_header to number the columns.")
    assert "Rename one of them, or give --no_header" in error_of(write("d.tsv", b"Oh\tOh\nOh\tEh\n"))
    write("few.tsv", b"a\tb\tc\td\ne\tf\n")
    assert "few.tsv:2: expected 4 fields, as in the first row (got 2)" in error_of("few.tsv", no_header=True, **columns)
    assert texts(load(write("s.csv", b'en;fr\n"a;b";c\n'), delimiter=";").train) == [("a;b", "c")]
    assert texts(load(write("p.tsv", b"en|fr\na\tb|c\n"), delimiter="|").train) == [("a\tb", "c")]


@pytest.mark.slow
def test_csv_reads_fields_of_any_length() -> None:
    text = "a " * 100_000  # the csv module allows 131,072 characters
    for name, content in (("t.csv", f"en,fr\n{text},b\n"), ("t.tsv", f"en\tfr\n{text}\tb\n")):
        assert texts(load(write(name, content.encode())).train) == [(text, "b")]
    assert texts(load("t.tsv", quoting="csv").train) == [(text, "b")]


def test_columns_follow_languages_and_flags() -> None:
    write("t.jsonl", FORMATS["lines.jsonl"])
    swapped = load("t.jsonl", source_lang="fr", target_lang="en")
    assert texts(swapped.train) == [(fr, en) for en, fr in PAIRS]
    rows = [{"text": "long", "summary": "short", "translation": {"en": "no", "fr": "non"}}]
    flags = {"source_lang": None, "target_lang": None, "source_column": "text", "target_column": "summary"}
    assert texts(load(write("c.jsonl", json_lines(rows)), **flags).train) == [("long", "short")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "table.csv"])
def test_load_corpus_takes_keys_that_are_not_the_models_codes(name: str) -> None:
    rows = [{"en": en, "ca": "no", "ca@valencia": fr} for en, fr in PAIRS]
    table = "en,ca,ca@valencia\n" + "".join(f'"{en}",no,"{fr}"\n' for en, fr in [("a b", "c d"), ("e", "f")])
    content = json_lines([{"translation": row} for row in rows]) if name == "rows.jsonl" else table.encode()
    pairs = PAIRS if name == "rows.jsonl" else [("a b", "c d"), ("e", "f")]
    flags = {"source_lang": "eng_Latn", "target_lang": "cat_Latn"}
    path = write(name, content)
    assert texts(load(path, **flags, target_key="ca@valencia").train) == pairs
    assert {target for _, target in texts(load(path, **flags).train)} == {"no"}
    assert error_of(path, **flags, target_key="xx").startswith("--target_key: no row of ")
    assert "; where the model has another code, give it to --target_key." in error_of(path, target_lang="spa_Latn")
    assert (
        texts(load(path, source_lang=None, target_lang=None, source_key="en", target_key="ca@valencia").train) == pairs
    )


def test_load_files_numbers_rows_of_several_files_and_globs() -> None:
    for number in (1, 2, 3):
        write(f"part{number}.jsonl", json_lines([{"en": f"e{number}", "fr": f"f{number}"}]))
    corpus = load("part3.jsonl", "part[12].jsonl")
    assert texts(corpus.train) == [("e3", "f3"), ("e1", "f1"), ("e2", "f2")]
    assert corpus.train["index"][:] == [0, 1, 2]
    paths = [source["path"] for source in corpus.report["sources"]["train"]]
    assert paths == ["part3.jsonl", "part1.jsonl", "part2.jsonl"]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_text_lines_end_at_newlines_only(packing: str) -> None:
    lines = [" a\rb ", "c\x0bd\x0ce", "f\x85g\u2028h", "i\u00a0"]
    write(f"t.en{packing}", ("\ufeff" + "\r\n".join(lines)).encode())
    write(f"t.fr{packing}", ("\n".join(lines) + "\n").encode())
    assert texts(load(f"t.en{packing}", f"t.fr{packing}").train) == [(line, line) for line in lines]


@pytest.mark.parametrize(
    "ending",
    [
        "sdlxliff",
        "ts",
        "xml",
        "properties",
        "strings",
        "srt",
        "html",
        "docx",
        "srt.gz",
        "TS",
    ],
)
def test_unsupported_formats_are_refused_by_name(ending: str) -> None:
    name = write(f"app.{ending}", b'msgid "a"\nmsgstr "b"\n')
    shown = ending.lower().removesuffix(".gz")
    for files in ([name], [name, name], ["t.en", name]):
        write("t.en", b"a\n")
        message = error_of(*files)
        assert message.startswith("--train_file: ") and f"(.{shown}) is not supported (got {name}). Convert" in message
    write("t.csv", b"en,fr\na,b\nc,d\n")
    assert error_of("t.csv", test_file=[name]).startswith("--test_file: ")


@pytest.mark.slow
def test_ending_of_a_language_is_plain_text() -> None:
    write("t.en", b"a\nb\n")
    write("t.ts", b"c\nd\n")  # Tsonga, or of Qt
    for code in ("ts", "Tsonga", "tso_Latn"):
        assert texts(load("t.en", "t.ts", target_lang=code).train) == [("a", "c"), ("b", "d")]
    assert texts(load("t.en", write("t.arb", b"c\nd\n"), target_lang="arb").train) == [("a", "c"), ("b", "d")]
    assert texts(load("t.en", write("t.cs", b"c\nd\n"), source_lang=None, target_lang=None).train)
    assert texts(load(write("t.ndjson", GOOD)).train) == [("a", "b")]
    assert texts(load(write("t.tab", b"en\tfr\na\tb\n")).train) == [("a", "b")]


def test_text_without_languages() -> None:
    corpus = load(write("in.txt", b"a\nb\n"), write("out.txt", b"c\nd\n"), source_lang=None, target_lang=None)
    assert texts(corpus.train) == [("a", "c"), ("b", "d")]


def test_load_corpus_counts_dropped_rows_by_reason() -> None:
    rows: list[dict[str, Any]] = [
        {"translation": {"en": "kept", "fr": "gard\u00e9"}},
        {"translation": {"en": "one"}},  # missing_language
        {"translation": {"en": None, "fr": 3}},  # missing_language comes before wrong_type
        {"translation": None},  # missing_language
        {"other": 1},  # missing_language
        {"translation": {"en": "", "fr": 3}},  # wrong_type comes before empty
        {"translation": {"en": ["a"], "fr": "b"}},  # wrong_type
        {"translation": "en"},  # wrong_type
        {"translation": {"en": "\ud800", "fr": "half a surrogate pair"}},  # wrong_type: not Unicode
        {"translation": {"en": "", "fr": "x"}},  # empty
        {"translation": {"en": "x", "fr": " \u00a0\n\t"}},  # empty
        {"translation": {"en": "last", "fr": "fin"}},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    corpus = load(write("t.jsonl", content))
    assert corpus.train["index"][:] == [0, 11]
    assert corpus.report["counts"]["train"] == {
        "loaded": 12,
        "dropped": {"missing_language": 4, "wrong_type": 4, "empty": 2},
        "kept": 2,
    }
    assert describe(corpus.report)[0] == (
        "train: 12 rows loaded, 10 dropped (4 missing_language, 4 wrong_type, 2 empty), 2 kept"
    )
    assert json.loads(json.dumps(corpus.report)) == corpus.report


def test_load_corpus_drops_nulls_and_numbers_of_parquet() -> None:
    rows = [{"translation": {"en": "a", "fr": None}}, {"translation": None}, {"translation": {"en": "b", "fr": "c"}}]
    assert load(write("t.parquet", parquet(rows))).report["counts"]["train"]["dropped"] == {"missing_language": 2}
    message = error_of(write("n.parquet", parquet([{"en": 1, "fr": "x"}])))
    assert "every row of train was dropped" in message and "1 wrong_type" in message


def test_records_refuse_arrow_with_offsets_beyond_its_texts(tmp_path) -> None:
    path = tmp_path / "a.arrow"
    table = pa.table({"en": ["ab" * 3_000]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content, offsets = bytearray(path.read_bytes()), struct.pack("<ii", 0, 6_000)
    at = content.rindex(offsets)  # behind the metadata, which has the length of the texts
    content[at : at + len(offsets)] = struct.pack("<ii", 0, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow: cannot read it as Arrow \(.*[Oo]ffset"):
        list(Records(InputFile(str(path), "a.arrow"), "arrow"))


def test_records_refuse_dates_that_python_lacks(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"en": pa.array([2**62], pa.timestamp("us"))}), path)
    with pytest.raises(UserError, match=r"a\.parquet: cannot read it as Parquet \(.*\)\. Write or download it again"):
        list(Records(InputFile(str(path), "a.parquet"), "parquet"))


GOOD = b'{"en": "a", "fr": "b"}\n'
BROKEN = {
    "syntax.jsonl": (GOOD + b'{"en": "a", "fr": \n' + GOOD, "syntax.jsonl:2: invalid JSON"),
    "syntax.json": (GOOD + GOOD + b'{"en": "a" "fr": "b"}\n', "syntax.json:3: invalid JSON"),
    "first.json": (
        b'{"en": "a",\n' + GOOD,
        "first.json:1: invalid JSON (Expecting property name enclosed in double quotes, column 12)",
    ),
    "object.jsonl": (GOOD + b"\n[1]\n", "object.jsonl:3: expected a JSON object as a row (got list)"),
    "utf8.jsonl": (GOOD + b'{"en": "\xe9", "fr": "b"}\n', "utf8.jsonl:2: not UTF-8 (got byte 0xe9)"),
    "deep.jsonl": (GOOD + b"[" * 200_000 + b"\n", "deep.jsonl:2: invalid JSON"),
    "cut.json": (b'[\n{"en": "a", "fr": "b"},\n{"en": "c",', "cut.json:3: invalid JSON"),
    "open.json": (b'[\n{"en": "a", "fr": "b"}\n', "open.json:3: invalid JSON (expected ',')"),
    "item.json": (b'[\n{"en": "a", "fr": "b"},\n\n7]', "item.json:4: expected a JSON object as a row (got int)"),
    "after.json": (b'[{"en": "a", "fr": "b"}]\n{}', "after.json:2: invalid JSON (text after"),
    "dataend.json": (b'{"data": [{"en": "a", "fr": "b"}]\n', "dataend.json:2: invalid JSON (expected '}')"),
    "number.json": (b'{"a": 12', "number.json:1: invalid JSON"),
    "half.json": (b'[{"en": "a", "fr": "b"},\n{"en": "\xe2\x82', "half.json:2: not UTF-8 (got byte 0xe2)"),
    "utf8.json": (b'[{"en": "a", "fr": "b"},\n{"en": "\xff"}]', "utf8.json:2: not UTF-8 (got byte 0xff)"),
    "few.csv": (b'en,fr\n"a\nb",c\nd\n', "few.csv:4: expected 2 fields, as in the header (got 1)"),
    "many.csv": (b"en,fr\na,b\nc,d,e\n", "many.csv:3: expected 2 fields, as in the header (got 3)"),
    "quote.csv": (b'en,fr\na,b\n"c,d\ne,f\n', "quote.csv:3: malformed row"),
    "utf8.tsv": (b"en\tfr\na\tb\nc\xe9\td\n", "utf8.tsv:3: not UTF-8"),
    "twice.csv": (b"en,fr,en\na,b,c\n", "twice.csv:1: duplicate column in the header"),
    "header.csv": (
        b"de,fr\na,b\n",
        "--source_lang: no row of header.csv has this column (got en)",
    ),
    "magic.parquet": (b"PAR1 not really", "magic.parquet: cannot read it as Parquet"),
    "empty.jsonl": (b"\n", "empty.jsonl: no rows"),
    "empty.json": (b"", "empty.json: no rows"),
    "header.tsv": (b"en\tfr\n", "header.tsv: no rows"),
    "list.json": (b"[]", "list.json: no rows"),
    "marked.jsonl": (GOOD.decode().encode("utf-16"), "marked.jsonl:1: not UTF-8 but UTF-16"),
    "wide.tsv": ("en\tfr\na\tb\n".encode("utf-16-le"), "wide.tsv:1: not UTF-8 but UTF-16"),
    "packed.csv": (gzip.compress(b"en,fr\na,b\n"), "packed.csv:1: a gzip file (got the first bytes b'\\x1f"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_malformed_file_is_reported_with_line_and_not_cached(name: str, cache: Path) -> None:
    content, expected = BROKEN[name]
    for _ in range(2):
        assert expected in error_of(write(name, content))
    assert not list(cache.rglob("*.arrow")) and not list(cache.rglob("*.incomplete"))


@pytest.mark.parametrize(
    ("content", "line", "name"),
    [
        ('\ufeff<?xml version="1.0"?>\n<tmx/>\n', 1, "XML"),
        ("<!DOCTYPE html>\n", 1, "XML or a web page"),
        ("1\n00:00:01,000 --> 00:00:02,000\nHi\n", 2, "a subtitle file"),
        ("PK\x03\x04", 1, "a zip archive"),
        ("%PDF-1.7\n", 1, "a document"),
    ],
)
def test_text_of_another_format_is_refused(content: str, line: int, name: str) -> None:
    for file in ("a.txt", "a", "a.po~", "a.gz"):
        message = error_of(write(file, content.encode()), write("b.txt", b"x\n"))
        assert message.startswith(f"{file}:{line}: {name}") and "Convert it to .jsonl" in message


def test_catalogue_with_another_ending_is_refused() -> None:
    message = error_of(write("a.txt", b'# Copyright\n\nmsgid ""\nmsgstr ""\n'), write("b.txt", b"x\n"))
    assert message.startswith("a.txt:3: a gettext catalogue") and message.endswith("Rename it to end in .po.")


def test_text_that_resembles_another_format_is_read() -> None:
    lines = ["msgid is a keyword", 'msgid "Open"', "<b>bold</b>", "<?xml", "1", "00:00:01,000 --> 00:00:02,000"]
    write("a.txt", "".join(f"{line}\n" for line in lines).encode())
    assert texts(load("a.txt", "a.txt").train) == [(line, line) for line in lines]


def test_pipe_is_refused() -> None:
    os.mkfifo("pipe.jsonl")
    assert error_of("pipe.jsonl").startswith("--train_file: expected a file, not a pipe or device")


@pytest.mark.parametrize("damage", [lambda packed: packed[:-20], lambda packed: packed[:30] + b"!" + packed[31:]])
def test_corrupt_gzip_file_is_reported(damage: Callable[[bytes], bytes]) -> None:
    Path("t.jsonl.gz").write_bytes(damage(gzip.compress(json_lines(RECORDS * 50))))
    assert "t.jsonl.gz: corrupt gzip file" in error_of("t.jsonl.gz")
    Path("t.jsonl.gz").write_bytes(b"no gzip at all")
    assert "t.jsonl.gz: corrupt gzip file" in error_of("t.jsonl.gz")


def test_text_pair_refuses_mismatched_files() -> None:
    write("t.en", b"a\nb\nc\n")
    write("t.fr", b"d\n")
    write("bad.fr", b"d\n\xe9\nf\n")
    problem = "aligned files must have the same number of lines"
    assert f"t.en: {problem} (got 3, and 1 in t.fr)" in error_of("t.en", "t.fr")
    assert f"t.fr: {problem} (got 1, and 3 in t.en)" in error_of("t.fr", "t.en", source_lang=None, target_lang=None)
    assert "bad.fr:2: not UTF-8 (got byte 0xe9)" in error_of("t.en", "bad.fr")
    assert "must be two aligned files" in error_of("t.en")
    assert "must be two aligned files" in error_of("t.en", "t.fr", "bad.fr")
    assert "must be two aligned files" in error_of("t.??")
    assert "seem to be swapped" in error_of("t.fr", "t.en")
    assert "no lines" in error_of(write("e.en", b""), write("e.fr", b""))


def test_missing_files_and_columns_are_reported() -> None:
    write("t.jsonl", FORMATS["lines.jsonl"])
    write("c.csv", FORMATS["table.csv"])
    Path("folder").mkdir()
    assert error_of("no.jsonl").startswith("--train_file: no such file (got no.jsonl)")
    assert error_of("no*.jsonl").startswith("--train_file: no file matches this pattern (got no*.jsonl)")
    assert error_of("t.jsonl", validation_file=["v.csv"]).startswith("--validation_file: no such file (got v.csv)")
    assert error_of("t.jsonl", test_file=["v.csv"]).startswith("--test_file: no such file (got v.csv)")
    for files in (["folder"], ["folder", "c.csv"], ["folder", "folder"], ["f*"]):
        assert error_of(*files).startswith("--train_file: expected a file, or a folder of catalogues")
    assert "t.jsonl is jsonl, c.csv is csv" in error_of("t.jsonl", "c.csv")
    assert "Choose from its languages: en, fr" in error_of("t.jsonl", source_lang=None, target_lang=None)
    message = "--target_lang: no row of t.jsonl has this language (got de). Choose from: en, fr"
    assert message in error_of("t.jsonl", target_lang="de")
    message = "--target_column: no row of c.csv has this column (got z). Choose from: en, fr"
    assert message in error_of("c.csv", source_column="en", target_column="z")
    assert "--source_column and --target_column: en, fr" in error_of("c.csv", source_lang=None)
    assert "Give --dataset_name or --train_file" in error_of()


def test_load_corpus_refuses_split_without_rows() -> None:
    write("t.jsonl", b'{"en": " ", "fr": "x"}\n{"en": "y", "fr": null}\n')
    expected = "every row of train was dropped (of 2 rows: 1 missing_language, 1 empty)"
    assert expected in error_of("t.jsonl")


@pytest.mark.slow
def test_json_values_across_chunk_boundaries() -> None:
    # 65,536 bytes are read at a time: about 3 rows of 150 kB need several reads each, 2,000 small ones a part of one;
    # three-byte characters at every offset fall across the boundaries.
    rows = [
        {"en": f"{number}" + "\u20ac" * (50_000 if number % 700 == 0 else 20), "fr": "f"} for number in range(2_100)
    ]
    content = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    corpus = load(write("t.json", content))
    assert texts(corpus.train) == [(row["en"], row["fr"]) for row in rows]
    # indent=1 writes "[", then 4 lines a row ("{", en, fr, "}"): row 2,000 begins on line 2 + 4 * 2,000.
    broken = content.replace(b'"2000', b'"2000\n', 1)
    assert "t.json:8003: invalid JSON" in error_of(write("t.json", broken))


@pytest.mark.slow
def test_validation_split_equals_course() -> None:
    number = 210_173
    en = pa.array([f"e{row}" for row in range(number)])
    fr = pa.array([f"f{row}" for row in range(number)])
    Path("set").mkdir()
    struct = pa.StructArray.from_arrays([en, fr], ["en", "fr"])
    pq.write_table(pa.table({"id": en, "translation": struct}), "set/train.parquet")
    corpus = load(dataset_name="set")
    # floor(0.9 * 210,173) = 189,155; 210,173 - 189,155 = 21,018
    assert (len(corpus.train), len(corpus.valid)) == (189_155, 21_018)
    course = datasets.Dataset.from_dict({"row": list(range(number))}).train_test_split(train_size=0.9, seed=20)
    assert corpus.train["index"][:] == course["train"]["row"][:]
    assert corpus.valid["index"][:] == course["test"]["row"][:]
    assert corpus.valid[7]["source"] == f"e{course['test'][7]['row']}"
    assert corpus.train[-1]["target"] == f"f{course['train'][-1]['row']}"


@pytest.mark.network
def test_validation_split_of_real_kde4_equals_course(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    corpus = load(dataset_name="kde4")
    assert corpus.report["counts"]["train"]["loaded"] == 189_155
    # Printed on the course's page about translation as split_datasets["train"][1].
    assert corpus.train[1]["source"] == "Default to expanded threads"


def make_rows(number: int) -> list[dict[str, str]]:
    return [{"en": f"e{row}", "fr": f"f{row}"} for row in range(number)]


def test_validation_split_precedes_dropping() -> None:
    rows = make_rows(200)
    whole = load(write("whole.jsonl", json_lines(rows)), validation_split=0.25)
    for row in (3, 50, 120, 199):
        rows[row]["en"] = " "
    thinned = load(write("thinned.jsonl", json_lines(rows)), validation_split=0.25)
    # 1 - 0.25 of 200 rows is 150.
    assert thinned.report["counts"]["train"]["loaded"] == 150 == len(whole.train)
    gone = {3, 50, 120, 199}
    assert thinned.train["index"][:] == [row for row in whole.train["index"] if row not in gone]
    assert thinned.valid["index"][:] == [row for row in whole.valid["index"] if row not in gone]
    dropped = [thinned.report["counts"][split]["dropped"].get("empty", 0) for split in ("train", "valid")]
    assert sum(dropped) == 4


def test_validation_split_refuses_single_row() -> None:
    assert "--validation_split: cannot split 1 rows (got 0.5)" in error_of(write("t.jsonl", GOOD), validation_split=0.5)


@pytest.mark.slow
def test_load_scored_rows_are_those_of_a_training(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(json_lines(make_rows(40)))
    fields: dict[str, Any] = {"source_lang": "en", "target_lang": "fr", "dataset_name": str(folder)}
    corpus = load_corpus(DataConfig(**fields))
    valid = load_scored_rows(DataConfig(**fields), "valid")  # cut from the training rows
    assert len(valid) == 4 and texts(valid) == texts(corpus.valid)
    with pytest.raises(UserError, match=r"--do_predict: .*set has no test rows \(got train\)\. Add --test_file\."):
        load_scored_rows(DataConfig(**fields), "test")
    (folder / "test.jsonl").write_bytes(json_lines(make_rows(3)))
    test = load_scored_rows(DataConfig(**fields, max_predict_samples=2), "test")
    assert len(test) == 2
    file = write("only.jsonl", json_lines(make_rows(5)))
    alone = DataConfig(source_lang="en", target_lang="fr", test_file=[file])
    assert len(load_scored_rows(alone, "test")) == 5


@pytest.mark.slow
def test_max_samples_takes_fixed_ordered_subset() -> None:
    rows = make_rows(100)
    rows[10]["fr"] = ""
    write("t.jsonl", json_lines(rows))
    fields: dict[str, Any] = {"test_file": ["t.jsonl"], "max_eval_samples": 7}
    corpus = load("t.jsonl", max_train_samples=30, **fields)
    chosen = corpus.train["index"][:]
    assert len(chosen) == 30 and chosen == sorted(chosen) and 10 not in chosen and chosen != list(range(30))
    assert corpus.test is not None and len(corpus.valid) == len(corpus.test) == 7
    assert corpus.report["counts"]["train"] == {
        "loaded": 100,
        "dropped": {"empty": 1, "max_train_samples": 69},
        "kept": 30,
    }
    assert corpus.report["counts"]["test"]["dropped"] == {"empty": 1, "max_eval_samples": 92}
    fewer = load("t.jsonl", max_predict_samples=3, **fields)
    assert fewer.test is not None and (len(fewer.valid), len(fewer.test)) == (7, 3)
    assert fewer.report["counts"]["test"]["dropped"] == {"empty": 1, "max_predict_samples": 96}
    assert texts(corpus.train) == [(f"e{row}", f"f{row}") for row in chosen]
    assert load("t.jsonl", max_train_samples=30, **fields).train["index"][:] == chosen
    assert load("t.jsonl", max_train_samples=30, split_seed=21, **fields).train["index"][:] != chosen
    assert len(load("t.jsonl", max_train_samples=500).train) == 99
    # Cut at random first, the subset keeps the order of the cut.
    cut = load("t.jsonl", validation_split=0.2)
    part = load("t.jsonl", validation_split=0.2, max_train_samples=40).train["index"][:]
    assert [row for row in cut.train["index"] if row in set(part)] == part and len(part) == 40


def arrow_files(cache: Path) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in cache.rglob("*.arrow")}


def test_load_corpus_uses_cache(cache: Path) -> None:
    rows = make_rows(50)
    rows[5]["en"] = ""
    write("t.jsonl", json_lines(rows))
    first = load("t.jsonl", validation_split=0.2)
    files = arrow_files(cache)
    second = load("t.jsonl", validation_split=0.2)
    assert files and arrow_files(cache) == files
    assert second.report == first.report and texts(second.train) == texts(first.train)
    assert second.train._fingerprint == first.train._fingerprint


def test_load_corpus_reads_changed_file_again() -> None:
    write("t.jsonl", b'{"en": "old", "fr": "x"}\n')
    before = load("t.jsonl")
    stat = os.stat("t.jsonl")
    write("t.jsonl", b'{"en": "new", "fr": "x"}\n')
    os.utime("t.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load("t.jsonl")
    assert (before.train[0]["source"], after.train[0]["source"]) == ("old", "new")
    assert before.report["fingerprint"] != after.report["fingerprint"]


def test_overwrite_cache_rebuilds_once(cache: Path) -> None:
    write("t.jsonl", json_lines(RECORDS))
    load("t.jsonl")
    (folder,) = (cache / "mtloop").iterdir()
    os.utime(folder, (1, 1))
    files = arrow_files(cache)
    load("t.jsonl")
    assert arrow_files(cache) == files
    stamp = {path: os.stat(path).st_mtime_ns for path in files}
    load("t.jsonl", overwrite_cache=True)
    rebuilt = {path: os.stat(path).st_mtime_ns for path in arrow_files(cache)}
    assert rebuilt.keys() == stamp.keys() and rebuilt != stamp
    # What this process, or one that started with it, has just built is not built again.
    load("t.jsonl", overwrite_cache=True)
    assert {path: os.stat(path).st_mtime_ns for path in arrow_files(cache)} == rebuilt


LOADER = """
import os, sys
from mtloop.config.inputs import DataConfig
from mtloop.data.load import load_corpus
def private_mb():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
before = private_mb()
corpus = load_corpus(DataConfig(train_file=[sys.argv[1]], source_lang="en", target_lang="fr"), cache_dir=sys.argv[2])
print(len(corpus.train), len(corpus.valid), private_mb() - before, end=" ")
print(corpus.report["fingerprint"], corpus.train._fingerprint, corpus.valid._fingerprint)
"""


def start_loader(path: str, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOADER, path, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_load_corpus_after_killed_load(cache: Path) -> None:
    rows = make_rows(60_000)
    write("t.jsonl", json_lines(rows))
    loader = start_loader("t.jsonl", cache)
    deadline = time.monotonic() + 60
    while not list(cache.rglob("*.incomplete/*.arrow")) and time.monotonic() < deadline:
        time.sleep(0.01)
    loader.send_signal(signal.SIGKILL)
    loader.communicate(timeout=60)
    assert list(cache.rglob("*.incomplete/*.arrow")), "the load was to be killed halfway"
    corpus = load("t.jsonl", validation_split=0.1)
    assert len(corpus.train) + len(corpus.valid) == 60_000
    assert corpus.train[0]["source"] == f"e{corpus.train[0]['index']}"


@pytest.mark.slow
def test_load_corpus_in_concurrent_processes(cache: Path) -> None:
    rows = make_rows(5_000)
    rows[7]["en"] = ""
    write("t.jsonl", json_lines(rows))
    loaders = [start_loader("t.jsonl", cache) for _ in range(2)]
    outputs = [loader.communicate(timeout=120) for loader in loaders]
    assert [loader.returncode for loader in loaders] == [0, 0], outputs
    results = [output.split() for output, _ in outputs]
    # 0.9 * 5,000 = 4,500 and 500, one row dropped from one of them.
    assert int(results[0][0]) + int(results[0][1]) == 4_999
    assert results[0][:2] + results[0][3:] == results[1][:2] + results[1][3:]
    files = arrow_files(cache)
    third = start_loader("t.jsonl", cache)
    output, errors = third.communicate(timeout=120)
    assert output.split()[3:] == results[0][3:], errors
    assert files and arrow_files(cache) == files


@pytest.mark.slow
@pytest.mark.full
def test_load_corpus_private_memory_is_constant(cache: Path) -> None:
    text = "word " * 50
    growth = []
    for number in (3_000, 300_000):
        with open(f"{number}.jsonl", "w") as stream:
            stream.writelines(f'{{"en": "{text}{row}", "fr": "{text}{row}"}}\n' for row in range(number))
        loader = start_loader(f"{number}.jsonl", cache)
        output, errors = loader.communicate(timeout=300)
        assert loader.returncode == 0, errors
        assert int(output.split()[0]) == number * 9 // 10
        growth.append(float(output.split()[2]))
    # 300,000 rows of 2 * 255 characters are 153 MB as bytes: a reader that keeps them fails. Allowed are the 8 bytes a
    # row of the permutation and the 32 of its numbers as Python objects (12 MB, given back or not), 48 MB for noise.
    assert growth[1] - growth[0] < 60, growth


@pytest.mark.slow
def test_fingerprint_depends_on_content_only() -> None:
    write("t.jsonl", json_lines(make_rows(40)))
    write("elsewhere/u.jsonl", json_lines(make_rows(40)))
    os.utime("elsewhere/u.jsonl", (1, 1))

    def fingerprint(path: str = "t.jsonl", **fields: Any) -> str:
        return str(load(path, **{"validation_split": 0.2, **fields}).report["fingerprint"])

    plain = fingerprint()
    assert len(plain) == 64
    same = [fingerprint("elsewhere/u.jsonl"), fingerprint(max_train_samples=4_000), fingerprint(overwrite_cache=True)]
    assert set(same) == {plain}
    different = [
        plain,
        fingerprint(split_seed=21),
        fingerprint(validation_split=0.3),
        fingerprint(max_train_samples=5),
        fingerprint(max_eval_samples=5),
        fingerprint(source_lang="fr", target_lang="en"),
        fingerprint(validation_file=["t.jsonl"]),
        fingerprint(test_file=["t.jsonl"]),
        fingerprint(write("t.jsonl", json_lines(make_rows(40)[::-1]))),
    ]
    assert len(set(different)) == len(different)
    write("t.tsv", b"en\tfr\na\tb\nc\td\n")
    given = {"train_file": ["t.tsv"], "source_column": "1", "target_column": "2", "validation_split": 0.5}
    forms = [{"no_header": True}, {"no_header": True, "quoting": "csv"}]
    tables = [load(**{**given, **form}).report["fingerprint"] for form in forms]
    assert len({*tables, *different}) == len(different) + 2
    # Where nothing is cut or thinned out, the seed and the share have no part in the rows.
    given = {"validation_file": ["t.jsonl"]}
    assert fingerprint(**given) == fingerprint(**given, split_seed=5, validation_split=0.4)


@pytest.mark.slow
def test_load_named_reads_local_folder() -> None:
    write("set/train.jsonl", json_lines(TRANSLATIONS))
    write("set/dev.jsonl", json_lines(TRANSLATIONS[:2]))
    write("set/test.jsonl", json_lines(TRANSLATIONS[2:3]))
    corpus = load(dataset_name="set")
    assert texts(corpus.train) == PAIRS and texts(corpus.valid) == PAIRS[:2]
    assert corpus.test is not None and texts(corpus.test) == PAIRS[2:3]
    (source,) = corpus.report["sources"]["valid"]
    assert source["split"] == "validation" and source["files"][0]["size"] == os.path.getsize("set/dev.jsonl")
    stat = os.stat("set/train.jsonl")
    changed = json_lines(TRANSLATIONS).replace(b'"one"', b'"two"')
    write("set/train.jsonl", changed)
    os.utime("set/train.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load(dataset_name="set")
    assert after.train[4]["target"] == "two"
    assert after.report["fingerprint"] != corpus.report["fingerprint"]
    assert "Choose from: en, fr" in error_of(dataset_name="set", target_lang="de")


def test_load_named_reads_tsv_without_quoting() -> None:
    write("set/train.tsv", b'en\tfr\n"Open the file\tOuvrir\nclose\tfermer\nsave "\tenregistrer\n')
    write("set/dev.tsv", b'en\tfr\n"Hi"\t"Salut"\n')
    corpus = load(dataset_name="set")
    assert texts(corpus.train) == [('"Open the file', "Ouvrir"), ("close", "fermer"), ('save "', "enregistrer")]
    assert texts(corpus.valid) == [('"Hi"', '"Salut"')]
    quoted = load(dataset_name="set", quoting="csv")
    assert texts(quoted.train) == [("Open the file\tOuvrir\nclose\tfermer\nsave ", "enregistrer")]
    assert quoted.report["fingerprint"] != corpus.report["fingerprint"]
    write("semi/train.csv", b'en;fr\n"a;b";c\nd;e\n')
    semi = load(dataset_name="semi", delimiter=";", validation_split=0.5)
    assert sorted(texts(semi.train) + texts(semi.valid)) == [("a;b", "c"), ("d", "e")]


@pytest.mark.slow
def test_load_corpus_reads_rows_as_libraries_write_them() -> None:
    rows = datasets.Dataset.from_list(TRANSLATIONS)
    rows.to_csv("python.csv")  # the text of a Python dict
    rows.save_to_disk("saved")
    write("text.csv", delimited(",", [{"translation": json.dumps(row["translation"])} for row in TRANSLATIONS]))
    write("array.jsonl", FORMATS["array.json"])
    write("pretty.jsonl", FORMATS["pretty.json"])
    map_of_texts = pa.array([[("en", en), ("fr", fr)] for en, fr in PAIRS], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"translation": map_of_texts}), "map.parquet")
    variable = [{"language": ["en", "fr", "fr"], "translation": [en, fr, "other"]} for en, fr in PAIRS]
    write("variable.jsonl", json_lines([{"translation": one} for one in variable]))
    write("variable.parquet", parquet([{"translation": one} for one in variable]))
    for name in sorted({path.name for path in Path().iterdir() if path.is_file()}):
        corpus = load(name)
        assert texts(corpus.train) == PAIRS, name
        assert error_of(name, target_lang="de").startswith(f"--target_lang: no row of {name} has this language"), name
        assert "Choose from its languages: en, fr" in error_of(name, target_lang=None), name
        write(f"folder/{name}/train{Path(name).suffix}", Path(name).read_bytes())
    # As save_to_disk writes them: the datasets library itself cannot hold a map.
    write("saved_map/state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode())
    table = pa.table({"translation": map_of_texts})
    with pa.OSFile("saved_map/data.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    for name in ("saved", "saved_map", *map(str, Path("folder").iterdir())):
        corpus = load(dataset_name=name, validation_split=0.5)
        assert sorted(texts(corpus.train) + texts(corpus.valid)) == sorted(PAIRS), name


@pytest.mark.slow
def test_load_corpus_reads_table_in_one_json_value() -> None:
    columns = {"id": [*range(6)], "en": [en for en, _ in PAIRS], "fr": [fr for _, fr in PAIRS]}
    of_pandas = {name: {str(number): text for number, text in enumerate(column)} for name, column in columns.items()}
    tables = {"columns": columns, "pandas": of_pandas, "index": dict(zip("012345", TRANSLATIONS, strict=True))}
    tables["translations"] = {"translation": [row["translation"] for row in TRANSLATIONS]}
    for name, table in tables.items():
        for ending, indent in (("json", None), ("json", 2), ("jsonl", 1)):
            corpus = load(write(f"{name}-{indent}.{ending}", json.dumps(table, indent=indent).encode()))
            assert texts(corpus.train) == PAIRS, (name, ending, indent)
    write("set/train.json", json.dumps(columns, indent=2).encode())
    assert len(load(dataset_name="set", validation_split=0.5).train) == 3
    rows = "\n".join(json.dumps(row, indent=4) for row in TRANSLATIONS)
    assert texts(load(write("rows.jsonl", rows.encode())).train) == PAIRS


def test_load_corpus_refuses_columns_of_different_lengths() -> None:
    for indent in (None, 2):
        write("columns.json", json.dumps({"en": ["a", "b"], "fr": ["c"]}, indent=indent).encode())
        assert error_of("columns.json") == (
            "columns.json:1: expected two texts in a row, not lists of texts (got 2 and 1). "
            "Write one row for each pair."
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("translation", "message"),
    [
        ("plain text", "(got 'plain text')"),
        (3, "(got 3)"),
        (None, "(got None)"),
        ([["a", "b", "c"]], "(got [['a', 'b', 'c']])"),
        ("{1: 'a', 2: 'b'}", "(got \"{1: 'a', 2: 'b'}\")"),
        ([{"key": 1, "value": "a"}, {"key": ["en"], "value": "b"}], "no row has languages"),
        ("\"{'en': 'a'}\"", "and --target_column, or --quoting csv."),
        ({"language": [None, "fr"], "translation": ["a", "b"]}, "no row of t.jsonl has this language (got en)"),
    ],
)
def test_load_corpus_names_form_of_translation_that_it_cannot_read(translation: Any, message: str) -> None:
    error = error_of(write("t.jsonl", json_lines([{"translation": translation}] * 2)))
    assert message in error and "Choose from: none" not in error


def test_load_corpus_counts_rows_with_several_texts_of_a_language() -> None:
    several = [{"language": ["en", "fr", "fr"], "translation": [en, fr, "other"]} for en, fr in PAIRS[:2]]
    other = {"language": ["de", "de", "en", "fr"], "translation": ["", "x", *PAIRS[2]]}
    corpus = load(write("t.jsonl", json_lines([{"translation": one} for one in [*several, other]])))
    assert texts(corpus.train) == PAIRS[:3]
    assert corpus.report["counts"]["train"]["notes"] == {"several_texts": 2}
    assert "train: 2 rows with several texts of a language" in describe(corpus.report)[1]


@pytest.mark.slow
def test_load_named_reads_folder_of_tables_as_train_file_does() -> None:
    write("set/train.csv", b'en,fr\n"two\nlines",null\nNA,None\n1,2\n')
    corpus = load(dataset_name="set", validation_file=["set/train.csv"])
    assert texts(corpus.train) == texts(corpus.valid) == [("two\nlines", "null"), ("NA", "None"), ("1", "2")]
    assert corpus.report["counts"]["train"]["notes"] == {"spans_lines": 1}
    write("numbered/train.tsv", b"1\teng\tHi\t2\tfra\tSalut\n3\teng\tBye\t4\tfra\tAdieu\n")
    numbered = load(dataset_name="numbered", no_header=True, source_column="3", target_column="6", validation_split=0.5)
    assert sorted(texts(numbered.train) + texts(numbered.valid)) == [("Bye", "Adieu"), ("Hi", "Salut")]
    # With settings in its card the library reads it: the lines are counted there too.
    card = b"---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  skiprows: 0\n---\n"
    write("set/README.md", card)
    library = load(dataset_name="set", validation_file=["set/train.csv"])
    assert library.report["counts"]["train"]["notes"] == {"spans_lines": 1}
    assert texts(library.train)[:2] == [("two\nlines", "null"), ("NA", "None")]
    assert "--no_header: only valid for files" in error_of(
        dataset_name="set", no_header=True, source_column="1", target_column="2"
    )


def test_load_named_finds_configuration_of_languages() -> None:
    card = (
        "---\nconfigs:\n- config_name: de-fr\n  data_files: x.jsonl\n- config_name: en-fr\n  data_files: t.jsonl\n---\n"
    )
    write("set/README.md", card.encode())
    write("set/x.jsonl", json_lines([{"translation": {"de": "d", "fr": "f"}}] * 5))
    write("set/t.jsonl", json_lines(TRANSLATIONS))
    corpus = load(dataset_name="set", source_lang="fr", target_lang="en", validation_split=0.5)
    # Half of the 6 rows each.
    assert sorted(texts(corpus.train) + texts(corpus.valid)) == sorted((fr, en) for en, fr in PAIRS)
    message = error_of(dataset_name="set", dataset_config_name="nl")
    assert "--dataset_config_name" in message and "de-fr" in message
    assert "--dataset_config_name" in error_of(dataset_name="set", target_lang="nl")


def test_load_named_reports_unavailable_data_set() -> None:
    message = error_of(dataset_name="nobody/nothing@v1")
    assert message.startswith("--dataset_name: cannot load nobody/nothing@v1")
    assert "`hf download --repo-type dataset nobody/nothing`" in message
    assert "--train_file" in message and "HF_HOME" in message
    write("old/old.py", b"# a loading script\n")
    assert "runs no loading scripts" in error_of(dataset_name="old")
    write("onlytest/test.jsonl", json_lines(TRANSLATIONS))
    assert "no split 'train' (got test)" in error_of(dataset_name="onlytest")


@pytest.mark.slow
@pytest.mark.parametrize("languages", [("en", "fr"), ("fr", "en")])
def test_load_demo(languages: tuple[str, str]) -> None:
    corpus = load(dataset_name="demo", source_lang=languages[0], target_lang=languages[1])
    from mtloop.data.demo.grammar import demo_pairs

    for rows, split in ((corpus.train, "train"), (corpus.valid, "validation")):
        assert texts(rows) == [pair if languages[0] == "en" else pair[::-1] for pair in demo_pairs(split)]
    assert "English and French only" in error_of(dataset_name="demo", target_lang="de")


@pytest.mark.parametrize(
    ("name", "languages", "number"),
    [
        pytest.param("kde_en_fr", ("en", "fr"), 69_703, marks=pytest.mark.slow),
        ("kde_en_ja", ("en", "ja"), 3_000),
    ],
)
@pytest.mark.slow
def test_load_corpus_reads_real_catalogues_unchanged(name: str, languages: tuple[str, str], number: int) -> None:
    path = REAL_DATA / f"{name}.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there: real data stands beside the project, not in it")
    corpus = load(str(path), source_lang=languages[0], target_lang=languages[1], validation_split=0.1)
    counts = corpus.report["counts"]
    assert counts["train"]["loaded"] + counts["valid"]["loaded"] == number
    with gzip.open(path, "rb") as stream:
        wanted = [json.loads(line)["translation"] for line in stream]
    loaded = dict(zip(corpus.train["index"][:], texts(corpus.train), strict=True))
    loaded.update(zip(corpus.valid["index"][:], texts(corpus.valid), strict=True))
    odd = 0
    for index, row in enumerate(wanted):
        source, target = (row[language] for language in languages)
        odd += "\n" in source or "\u00a0" in target or source != source.strip()
        if source.strip() and target.strip():
            assert loaded.pop(index) == (source, target)
    assert not loaded and odd


def test_cached_rows_are_read_in_a_cache_that_is_read_only(monkeypatch):
    name = write("lines.jsonl", json_lines([*TRANSLATIONS, {"translation": {"en": "", "fr": ""}}]))
    fields = {"validation_split": 0.5, "max_train_samples": 2}
    before = load(name, **fields)

    def refuse(path, *arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("mtloop.data.store._FileLock", refuse)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)  # what datasets writes with
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    after = load(name, **fields)
    assert after.report == before.report and before.report["counts"]["train"]["dropped"]
    for split in ("train", "valid"):
        rows, expected = getattr(after, split), getattr(before, split)
        assert texts(rows) == texts(expected) and rows._fingerprint == expected._fingerprint
    with pytest.raises(
        RunFailed, match="^HF_DATASETS_CACHE: cannot write .* Read-only file system.*HF_HOME to another"
    ):
        load(name, max_train_samples=None, validation_split=0.25)


def test_a_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    name = write("lines.jsonl", json_lines(TRANSLATIONS))
    folder = Path(write("file", b"")).absolute() / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    for fields in ({"train_file": [name]}, {"dataset_name": "demo"}, {"dataset_name": str(tmp_path)}):
        with pytest.raises(
            RunFailed, match=f"^HF_DATASETS_CACHE: cannot write rows to .*, {folder} \\(.*Not a directory"
        ):
            load(**fields)
