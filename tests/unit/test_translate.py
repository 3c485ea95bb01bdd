"""translate: every text once and in order, whatever its batch, its file, and what is in it."""

import csv
import gc
import gzip
import io
import json
import re
import shutil
from datetime import date
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

import mtloop
from mtloop.checkpoint.listing import model_folder
from mtloop.cli.commands import translate as command
from mtloop.config.environment import HardwareConfig
from mtloop.config.inputs import Dialect
from mtloop.data.texts import Entry, Texts
from mtloop.errors import UserError
from mtloop.runtime.ranks import Runtime
from mtloop.translate.files import Writer
from mtloop.translate.translator import Translation, Translator
from tests.support.commands import command as named_command

main = named_command("translate")


@pytest.fixture
def sentences(sample_rows):
    return [sample_rows[number]["source"] for number in range(24)]


@pytest.fixture
def translator(model_path, runtime):
    return Translator(str(model_path), num_beams=2, max_target_length=24, runtime=runtime)


@pytest.fixture
def run_command(model_path, fresh_accelerate, capfdbinary):
    """Run the command; return its status, standard output and error."""

    def run(*words):
        flags = ["--model", str(model_path), "--num_beams", "1", "--max_target_length", "16", "--cpu_threads", "1"]
        status = main([*map(str, words), *flags])
        captured = capfdbinary.readouterr()
        return status, captured.out.decode(), captured.err.decode()

    return run


# Translator


def test_translator_takes_text_or_list(translator, sentences):
    one = translator(sentences[0])
    assert isinstance(one, str) and one
    assert translator([sentences[0], "", " \t", sentences[1]])[:3] == [one, "", ""]
    assert translator([]) == []


def test_translator_equals_plain_generate(model_path, marian_tokenizer, tiny_model, translator, sentences):
    batch = marian_tokenizer(sentences[:1], return_tensors="pt")
    with torch.no_grad():
        pieces = tiny_model.generate(**batch, num_beams=2, max_length=24, do_sample=False)
    expected = marian_tokenizer.batch_decode(pieces, skip_special_tokens=True)
    assert translator(sentences[:1]) == expected


@pytest.mark.slow
def test_translator_does_not_depend_on_batches(model_path, runtime, sentences):
    sentences = sentences[:12]
    translator = Translator(str(model_path), num_beams=2, max_target_length=10, runtime=runtime)
    expected = translator(sentences)
    assert len(set(expected)) > 5
    for budget in (1, 40, 100_000):
        other = Translator(
            str(model_path), num_beams=2, max_target_length=10, max_tokens_per_batch=budget, runtime=runtime
        )
        assert other(sentences) == expected
    assert translator(sentences[::-1]) == expected[::-1]
    assert translator(sentences[:3] * 4) == expected[:3] * 4


@pytest.mark.slow
def test_translator_sorts_n_best_by_score(model_path, runtime, sentences):
    translator = Translator(str(model_path), num_beams=4, n_best=3, max_target_length=24, runtime=runtime)
    found = translator.translate(sentences[:8])
    for candidates in found:
        scores = [candidate.score for candidate in candidates]
        assert len(candidates) == 3 and scores == sorted(scores, reverse=True) and scores[0] < 0
    with pytest.raises(UserError, match=r"^--n_best: more than --num_beams 2 \(got 3\)\. Give at least as many beams"):
        Translator(str(model_path), num_beams=2, n_best=3, runtime=runtime)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_score_is_mean_log_probability_of_tokens(
    model_path, runtime, marian_tokenizer, tiny_model, num_beams, sentences
):
    translator = Translator(str(model_path), num_beams=num_beams, max_target_length=40, runtime=runtime)
    (found,) = translator.translate(sentences[:1])[0]
    assert not found.is_cut
    batch = marian_tokenizer(sentences[:1], return_tensors="pt")
    with torch.no_grad():
        pieces = tiny_model.generate(**batch, num_beams=num_beams, max_length=40, do_sample=False)
        logits = tiny_model(**batch, decoder_input_ids=pieces[:, :-1]).logits
    # generate never lets the padding piece through (bad_words_ids), and norms over what is left.
    logits[:, :, marian_tokenizer.pad_token_id] = -torch.inf
    steps = logits.log_softmax(dim=-1).gather(2, pieces[:, 1:, None])
    # Beam search norms before it strikes the padding piece out, greedy search after: the piece is all but impossible.
    assert found.score == pytest.approx(steps.mean().item(), abs=2e-2)


def test_translator_marks_cut_texts(model_path, runtime, sentences):
    translator = Translator(str(model_path), num_beams=1, max_source_length=4, max_target_length=3, runtime=runtime)
    (short,), (long,) = translator.translate(["Yes", sentences[0]])
    assert (short.is_source_cut, long.is_source_cut, long.is_cut) == (False, True, True)


def test_translator_refuses_lengths_beyond_model(model_path, runtime):
    with pytest.raises(UserError, match="--max_source_length: this model has 512 positions .got 9999"):
        Translator(str(model_path), max_source_length=9999, runtime=runtime)


def test_translator_names_flag_of_missing_model(runtime, tmp_path):
    with pytest.raises(UserError, match=r"^--model '.*nowhere': there is no such folder"):
        Translator(str(tmp_path / "nowhere"), runtime=runtime)


def test_translator_of_run_folder_takes_final_or_newest_checkpoint(tmp_path):
    assert model_folder("team/model@v1") == "team/model@v1"
    assert model_folder(str(tmp_path)) == str(tmp_path)
    for name in ("checkpoints/step_9", "checkpoints/step_10", "final"):
        (tmp_path / name).mkdir(parents=True)
    assert model_folder(str(tmp_path)) == str(tmp_path / "checkpoints" / "step_10")
    (tmp_path / "final" / "config.json").write_text("{}")
    assert model_folder(str(tmp_path)) == str(tmp_path / "final")
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(str(tmp_path)) == str(tmp_path)


def test_import_of_mtloop_does_not_import_torch(model_path, fresh_accelerate):
    assert mtloop.Translator is Translator and {"Translator", "main", "__version__"} <= set(dir(mtloop))
    with pytest.raises(AttributeError, match="no attribute 'Translater'"):
        mtloop.Translater  # noqa: B018
    translator = mtloop.Translator(str(model_path), num_beams=1, runtime=Runtime(HardwareConfig(cpu_threads=1)))
    assert isinstance(translator("Yes"), str)
    translator.close()
    assert PartialState._shared_state  # the runtime was given, and is its owner's


@pytest.mark.slow
def test_close_resets_accelerate(model_path, fresh_accelerate):
    with Translator(str(model_path), num_beams=1) as translator:
        assert isinstance(translator("Yes"), str) and PartialState._shared_state
    assert not PartialState._shared_state and not AcceleratorState._shared_state
    with pytest.raises(UserError, match="^--model 'nowhere'"):
        Translator("nowhere")
    assert not PartialState._shared_state
    dropped = Translator(str(model_path), num_beams=1)
    del dropped
    gc.collect()
    assert not PartialState._shared_state
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"


@pytest.mark.slow
def test_translator_restores_progress_bars(model_path, fresh_accelerate, capfd):
    datasets.enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()
    with Translator(str(model_path), num_beams=1) as translator:
        assert isinstance(translator("Yes"), str)
    assert "%|" not in capfd.readouterr().err
    assert not datasets.are_progress_bars_disabled() and transformers.utils.logging.is_progress_bar_enabled()


# Files


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Read the texts of a file of this name and content."""
    monkeypatch.chdir(tmp_path)

    def read(content, name, **places):
        (tmp_path / name).write_bytes(content)
        return list(Texts(name, **{"column": None, "source_lang": "en", **places}))

    return read


def test_texts_end_lines_at_newlines_only(entries):
    content = "\ufeffa\x0bb\x0cc\u2028d\x85e\r\n\n \nf\rg".encode()
    assert entries(content, "x.txt") == [
        Entry("a\x0bb\x0cc\u2028d\x85e", "\r\n", "x.txt:1"), Entry("", "\n", "x.txt:2"), Entry(" ", "\n", "x.txt:3"),
        Entry("f\rg", "", "x.txt:4"),
    ]  # fmt: skip
    assert entries(b"", "x.txt") == []


def test_texts_of_rows_find_column(entries):
    rows = ['{"translation": {"en": "a", "fr": "b"}, "id": 7}', "", '{"en": "c"}', '{"source": "d"}', '{"text": "e"}']
    found = entries("\n".join(rows).encode(), "x.jsonl")
    assert [entry.text for entry in found] == ["a", "c", "d", "e"] and found[0].origin["id"] == 7
    assert [entry.text for entry in entries(b'{"m": "a", "en": "b"}', "x.jsonl", column="m")] == ["a"]
    row = b'{"translation": {"en": "a", "ca@valencia": "b"}, "source": "c"}'
    assert [entry.text for entry in entries(row, "x.jsonl", source_key="ca@valencia")] == ["b"]
    assert [entry.text for entry in entries(b'{"en": "a", "xx": "b"}', "x.jsonl", source_key="xx")] == ["b"]
    with pytest.raises(
        UserError, match=r"^x.jsonl:1: no column xx\. Give --source_key or --source_column; the columns"
    ):
        entries(row, "x.jsonl", source_key="xx")
    table = b'id\ten\n1\t"a ""quoted""\tb"\n2\tc\n'
    assert [entry.text for entry in entries(table, "x.tsv", dialect=Dialect("csv"))] == ['a "quoted"\tb', "c"]
    assert [entry.text for entry in entries(b'en\tid\n"a\t1\n"b"\t2\n', "x.tsv")] == ['"a', '"b"']
    pair = {"column": "2", "dialect": Dialect(no_header=True)}
    assert [entry.text for entry in entries(b"1\ta\n2\tb\n", "x.tsv", **pair)] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"a\n\xff\n", "x.txt:2: not UTF-8 (got byte 0xff)"),
        ("x.jsonl", b'{"en": "a"}\nnot\n', "x.jsonl:2: invalid JSON"),
        ("x.jsonl", b"[1]\n", "x.jsonl:1: expected a JSON object as a row (got int)"),
        (
            "x.jsonl",
            b'{"de": "a", "id": 1}\n',
            "x.jsonl:1: no column en or source or text. Give --source_lang or --source_column; the columns are de, id",
        ),
        ("x.jsonl", b'{"en": 5}\n', "x.jsonl:1: en must be a text (got 5)"),
        ("x.csv", b"en,id\na\n", "x.csv:2: expected 2 fields, as in the header (got 1)"),
        ("x.csv", b"en\na,b\n", "x.csv:2: expected 1 fields, as in the header (got 2)"),
        ("x.csv", b"en,id,en\na,1,b\n", "x.csv:1: duplicate column in the header (got en, id, en)"),
        ("x.csv", b'en\n"a\n', "x.csv:2: malformed row"),
    ],
)
def test_texts_name_broken_line(entries, name, content, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        entries(content, name)


def write(name, rows, **options):
    return written(name, rows, **options).decode()


def written(name, rows, *, records=None, **options):
    """Write blocks of one row."""
    file = io.BytesIO()
    writer = Writer(file, name, **options)
    for entry, candidates in rows:
        writer.write([entry], [candidates], records)
    writer.finish(records)
    return file.getvalue()


def test_writer_format_follows_name():
    best, other = Translation(text="x\ny", score=-0.5), Translation(text='"z"', score=-1.25)
    rows = [(Entry("a", "\r\n"), [best]), (Entry("b", ""), [other])]
    assert write("o.txt", rows) == 'x y\r\n"z"'
    assert write("o.txt", rows, with_scores=True) == '0 ||| x y ||| -0.5000\r\n1 ||| "z" ||| -1.2500\n'
    assert write("o.txt", [(Entry("a", "\n"), [best, other])], n_best=2) == '0 ||| x y\n0 ||| "z"\n'
    assert [json.loads(line) for line in write("o.jsonl", rows).splitlines()] == [
        {"source": "a", "hypothesis": "x\ny"}, {"source": "b", "hypothesis": '"z"'},
    ]  # fmt: skip
    row = Entry("a", {"id": "7", "en": "a"})
    assert json.loads(write("o.jsonl", [(row, [best, other])], n_best=2, with_scores=True)) == {
        "id": "7", "en": "a", "hypothesis": ["x\ny", '"z"'], "score": [-0.5, -1.25],
    }  # fmt: skip
    assert json.loads(write("o.json", rows)) == [
        {"source": "a", "hypothesis": "x\ny"}, {"source": "b", "hypothesis": '"z"'},
    ]  # fmt: skip
    assert json.loads(write("o.json", [])) == []
    packed = written("o.txt.gz", rows)
    assert gzip.decompress(packed).decode() == write("o.txt", rows) and packed[3] == 0  # no name of a file inside
    table = write("o.csv", [(row, [best]), (row, [other])], with_scores=True)
    assert list(csv.DictReader(io.StringIO(table))) == [
        {"id": "7", "en": "a", "hypothesis": "x\ny", "score": "-0.5000"},
        {"id": "7", "en": "a", "hypothesis": '"z"', "score": "-1.2500"},
    ]


def test_writer_parquet_keeps_columns_and_types(tmp_path):
    rows = [
        {"id": 7, "text": "a", "tags": ["x", "y"], "none": None},
        {"id": None, "text": "b", "tags": [], "none": None},
    ]
    schema = pa.schema(
        [("id", pa.int16()), ("text", pa.string()), ("tags", pa.list_(pa.string())), ("none", pa.null())]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in.parquet")
    texts = Texts(str(tmp_path / "in.parquet"), column=None, source_lang=None)
    found = [(entry, [Translation(text=entry.text * 2, score=-1.0)] * 2) for entry in texts]
    content = written("o.parquet", found, records=texts.records, n_best=2, with_scores=True)
    table = pq.read_table(io.BytesIO(content))
    kinds = [*schema, ("hypothesis", pa.list_(pa.string())), ("score", pa.list_(pa.float64()))]
    assert table.schema.equals(pa.schema(kinds))
    assert table.to_pylist() == [
        {**row, "hypothesis": [row["text"] * 2] * 2, "score": [-1.0, -1.0]} for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.parquet"])
def test_writer_table_without_rows_has_header(tmp_path, name):
    columns = {"id": pa.array([], pa.string()), "en": pa.array([], pa.string())}
    if name == "in.parquet":
        pq.write_table(pa.table(columns), tmp_path / name)
    else:
        (tmp_path / name).write_text(("," if name == "in.csv" else "\t").join(columns) + "\n")
    texts = Texts(str(tmp_path / name), column=None, source_lang="en")
    assert list(texts) == []
    content = written(name, [], records=texts.records, with_scores=True)
    names = pq.read_schema(io.BytesIO(content)).names if name == "in.parquet" else re.split("[,\t\n]", content.decode())
    assert names[:4] == ["id", "en", "hypothesis", "score"]


@pytest.mark.parametrize(
    ("name", "dialect", "content", "expected"),
    [
        ("o.tsv", Dialect(), 'en\tid\n"a\t1\n', 'en\tid\thypothesis\n"a\t1\tx "y" z\n'),
        ("o.tsv", Dialect("csv"), 'en\tid\n"a\tb"\t1\n', 'en\tid\thypothesis\n"a\tb"\t1\t"x ""y""\nz"\n'),
        ("o.tsv", Dialect(no_header=True), "a\t1\n", 'a\t1\tx "y" z\n'),
        ("o.csv", Dialect(no_header=True), "a\t1\n", '1,2,hypothesis\na,1,"x ""y""\nz"\n'),
        ("o.tsv", Dialect(delimiter="|"), "en|id\na\tb|1\n", 'en|id|hypothesis\na\tb|1|x "y" z\n'),
    ],
)
def test_writer_table_has_form_of_input(tmp_path, name, dialect, content, expected):
    (tmp_path / "in.tsv").write_text(content)
    column = "1" if dialect.no_header else None
    texts = Texts(str(tmp_path / "in.tsv"), column=column, source_lang="en", dialect=dialect)
    found = [(entry, [Translation(text='x "y"\nz')]) for entry in texts]
    assert write(name, found, records=texts.records) == expected


def test_writer_table_without_quoting_refuses_tabs_and_newlines():
    for text in ("a\tb", "a\nb"):
        with pytest.raises(UserError, match=r"^-o: .*cannot hold .*Give -o FILE.jsonl or FILE.csv\."):
            write("o.tsv", [(Entry(text, {"source": text}, "in.jsonl:1"), [Translation(text="x")])])


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
def test_writer_replaces_column_only_with_flag(name):
    rows = [(Entry("a", {"source": "a", "hypothesis": "old"}, "in.jsonl:1"), [Translation(text="new")])]
    with pytest.raises(UserError, match=r"^in.jsonl:1: .*already \(got 'hypothesis'\)\. .*--overwrite_column"):
        written(name, rows)
    content = written(name, rows, overwrites=True)
    found = pq.read_table(io.BytesIO(content)).to_pylist()[0] if name == "o.parquet" else content.decode()
    assert "new" in str(found) and "old" not in str(found)


def test_writer_table_refuses_new_columns():
    first, second = Entry("a", {"source": "a"}, "in.jsonl:1"), Entry("b", {"n": 1}, "in.jsonl:2")
    rows = [(first, [Translation(text="x")]), (second, [Translation(text="y")])]
    for name in ("o.csv", "o.parquet"):
        with pytest.raises(UserError, match=r"^in.jsonl:2: .*the first row lacks \(got 'n'\)\. Give -o FILE.jsonl"):
            written(name, rows)


def test_writer_formats_values_other_than_text():
    row = {"source": "a", "list": [1], "yes": True, "price": Decimal("1.20"), "when": date(2026, 1, 2), "none": None}
    table = write("o.csv", [(Entry("a", row), [Translation(text="x")])])
    assert table.splitlines()[1] == "a,[1],true,1.20,2026-01-02,,x"


def test_writer_keeps_half_surrogate_pair_in_json_only():
    rows = [(Entry("a", {"source": "a", "other": "\ud83d"}, "in.jsonl:1"), [Translation(text="é")])]
    assert json.loads(write("o.jsonl", rows)) == {"source": "a", "other": "\ud83d", "hypothesis": "é"}
    for name in ("o.csv", "o.parquet"):
        with pytest.raises((UserError, UnicodeEncodeError)):
            written(name, rows)


def test_translator_reads_half_surrogate_pair_as_replacement(translator):
    assert translator(["a \ud83d b", "\ud83d\ude00"]) == translator(["a \ufffd b", "\U0001f600"])


# The command


@pytest.mark.slow
def test_translate_counts_half_surrogate_pairs(run_command, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"en": "open"}\n{"en": "a \\ud83d"}\n')
    status, _, err = run_command(path, "--source_column", "en", "-o", tmp_path / "out.jsonl")
    assert status == 0
    assert f"mtloop: warning: {path}: 1 with half a surrogate pair, read as U+FFFD: number 2" in err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["en"] for row in rows] == ["open", "a \ud83d"] and all(row["hypothesis"] for row in rows)
    status, out, _ = run_command(path, "--source_column", "en")
    assert (status, out.splitlines()) == (0, [row["hypothesis"] for row in rows])


def test_translate_refuses_closed_streams(run_command, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", None)
    status, _, err = run_command("-", "-o", tmp_path / "out.txt")
    assert (status, err.splitlines()[-1][:37]) == (2, "mtloop: error: FILE: standard input i")
    monkeypatch.setattr("sys.__stdout__", None)
    status, _, err = run_command("--text", "a")
    assert (status, err) == (2, "mtloop: error: -o: missing, and standard output is closed. Give -o OUT.\n")


@pytest.mark.slow
def test_translate_file_line_by_line(run_command, sentences, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BLOCK_SIZE", 7)  # several blocks
    source, target = tmp_path / "in.txt", tmp_path / "new" / "out.txt"
    source.write_text("\n".join([*sentences[:20], "", sentences[0]]))
    status, out, err = run_command(source, "-o", target)
    assert (status, out) == (0, "") and "Traceback" not in err
    lines = target.read_text().split("\n")
    assert len(lines) == 22 and lines[20] == "" and lines[21] == lines[0] != ""
    assert [path.name for path in target.parent.iterdir()] == ["out.txt"]
    status, out, _ = run_command(source)
    assert (status, out) == (0, target.read_text())


@pytest.mark.slow
def test_translate_standard_input_and_sentences(run_command, sentences, monkeypatch):
    status, expected, _ = run_command("--text", sentences[0], "--text", sentences[1])
    assert status == 0 and len(expected.splitlines()) == 2
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(sentences[:2]).encode())))
    status, out, _ = run_command("-")
    assert (status, out) == (0, expected.removesuffix("\n"))


@pytest.mark.slow
def test_translate_several_files_into_folder(run_command, sentences, tmp_path):
    (tmp_path / "a.txt").write_text(sentences[0])
    (tmp_path / "b.jsonl").write_text(json.dumps({"source": sentences[0], "id": 1}))
    (tmp_path / "c.txt").write_text("")
    names = [tmp_path / name for name in ("a.txt", "b.jsonl", "c.txt")]
    status, _, _ = run_command(*names, "-o", tmp_path / "out")
    assert status == 0
    best = (tmp_path / "out" / "a.txt").read_text()
    row = json.loads((tmp_path / "out" / "b.jsonl").read_text())
    assert row == {"source": sentences[0], "id": 1, "hypothesis": best}
    assert (tmp_path / "out" / "c.txt").read_text() == ""


def test_translate_reports_cut_texts(run_command, sentences, tmp_path):
    (tmp_path / "a.txt").write_text(f"Yes\n\n{sentences[0]}\n")
    status, _, err = run_command(tmp_path / "a.txt", "--max_source_length", "4")
    assert status == 0
    assert "a.txt: 1 over the longest source and cut (--max_source_length 4): number 3" in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "FILE, --text: expected exactly one of them. Give FILE... (- for standard input), or --text SENTENCE."),
        (
            ["{in}", "--text", "a"],
            "FILE, --text: expected exactly one of them. Give FILE... (- for standard input), or --text SENTENCE.",
        ),
        (["{in}", "--n_best", "0"], "--n_best: expected a whole number from 1 to 1000 (got 0)."),
        (["{in}", "--num_beams", "x"], "--num_beams: expected a whole number from 1 to 1000 (got 'x')."),
        (["{in}x"], "FILE: no such file (got {in}x)"),
        (["{dir}"], "FILE: a folder needs -o FOLDER (got {dir})"),
        (["{in}", "{dir}"], "-o: several files need a folder. Give -o FOLDER."),
        (["{in}", "-o", "{in}"], "-o: equals the input (got {in}). Give another name."),
        (["{in}", "-o", "{in}/out.txt"], "-o {in}/out.txt: "),
        (["{in}", "-o", "{in}.parquet.gz"], "-o: Parquet is compressed inside, not by gzip (got {in}.parquet.gz)"),
        (["{dir}/app.srt"], "FILE: a subtitle file (.srt) is not supported (got {dir}/app.srt). Convert it to .jsonl"),
        (["{dir}/app.srt", "--source_lang", "en"], "FILE: a subtitle file (.srt) is not supported"),
        (["{in}", "-o", "{dir}/x.xliff"], "-o: only an XLIFF file can be filled into {dir}/x.xliff (got {in})."),
        (["{in}", "-o", "{dir}/x.tmx"], "-o: .tmx files are read, not written (got {dir}/x.tmx). Give -o FILE.po or"),
        (["{dir}", "-o", "{dir}/out"], "-o: in the folder of the input (got {dir}/out). Give another folder."),
        (["{dir}", "-o", "{dir}-out"], "FILE: no file to fill (.po, .pot, .xlf, .xliff) (got {dir})."),
        (["{in}", "--no_fuzzy"], "--no_fuzzy: needs a catalogue as output (got none). Give -o FILE.po or .xlf."),
        (["-", "-o", "x.po"], "FILE: standard input cannot be filled (got -)."),
        (["x.po", "-o", "y.po", "--n_best", "2"], "--n_best: a catalogue holds one translation of each text (got 2)."),
        (["{in}", "-o", "{dir}/x.ts", "--target_lang", "fr"], "-o: a Qt translation file (.ts) is not supported"),
        (["{in}", "--beams", "4"], "--beams: no such flag, did you mean --num_beams?"),
    ],
)
def test_mistakes_are_reported_in_one_line(run_command, tmp_path, words, reason):
    source = tmp_path / "in.txt"
    source.write_text("Yes\n")
    (tmp_path / "app.srt").write_text("1")
    places = {"in": source, "dir": tmp_path}
    status, out, err = run_command(*[word.format(**places) for word in words])
    (line,) = [line for line in err.splitlines() if line.startswith("mtloop: ")]
    assert status == 2 and out == "" and line.startswith(f"mtloop: error: {reason.format(**places)}")


def test_translate_refuses_a_maximum_length_without_room_for_a_token(fresh_accelerate, capsys):
    assert main(["--text", "a", "--model", "m", "--max_target_length", "1"]) == 2
    reason = "--max_target_length: expected a whole number from 2 to 65536 (got 1)."
    assert capsys.readouterr().err == f"mtloop: error: {reason}\n"


def test_translate_refuses_languages_the_run_was_not_trained_on(
    model_path, fresh_accelerate, capsys, tmp_path, sentences
):
    """It reads the rows that it was trained on, and is not asked for what it cannot do."""
    shutil.copytree(model_path, tmp_path / "run" / "final")
    config = "train_file: [a.tsv]\nsource_lang: en\ntarget_lang: fr\ntrain_tokenizer: true\nmodel_size: tiny\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    (tmp_path / "in.jsonl").write_text(json.dumps({"translation": {"en": sentences[0], "fr": "x"}}) + "\n")
    words = [str(tmp_path / "in.jsonl"), "--model", str(tmp_path / "run"), "--num_beams", "1", "--cpu_threads", "1"]
    words += ["-o", str(tmp_path / "out.jsonl")]
    assert main([*words, "--source_lang", "English"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["hypothesis"]
    for flags in (["--target_lang", "de"], ["--source_lang", "fr"]):
        assert main([*words, *flags]) == 2
        line = f"mtloop: error: {flags[0]}: the model translates en to fr (got {flags[1]!r}). "
        assert line in capsys.readouterr().err


def test_translator_names_item_that_is_not_a_text(translator):
    with pytest.raises(TypeError, match=r"^expected a text or a list of texts \(got int\)$"):
        translator(3)
    with pytest.raises(TypeError, match=r"^text 1: expected str \(got NoneType\)"):
        translator(["a", None])


def test_translate_leaves_no_partial_output(run_command, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "BLOCK_SIZE", 1)
    (tmp_path / "in.jsonl").write_text('{"source": "Yes"}\nnot\n')
    status, _, err = run_command(tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl")
    assert status == 2 and "in.jsonl:2: invalid JSON" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    assert not Path(tmp_path / "out.jsonl").exists()
