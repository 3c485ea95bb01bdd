"""The cut of the validation split, by rows and by groups, and what both sides have in common."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mtloop.config.inputs import DataConfig
from mtloop.config.parse import config_from, parse_config
from mtloop.config.yaml_file import to_yaml
from mtloop.data.load import Corpus, describe, load_corpus
from mtloop.data.rows import stable_key
from mtloop.data.splits import choose_groups, cut, leak_line, normalize, overlaps
from mtloop.errors import FieldError, UserError
from mtloop.trainer.report import evaluate_and_record, evaluate_on


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty cache, and its own working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def load(*files: str, **fields: Any) -> Corpus:
    return load_corpus(DataConfig(train_file=list(files), source_lang="en", target_lang="fr", **fields))


def error_of(*files: str, **fields: Any) -> str:
    with pytest.raises((UserError, FieldError)) as caught:
        load(*files, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Each source is written in up to four ways that --split_by source takes for one.
SOURCES = [
    form.format(number % 40)
    for number, form in enumerate(["Open &file {}", "open file {}.", "Open  file {}:", "_Open file\n{}"] * 50)
]
ROWS = [
    {"en": source, "fr": f"t{number}", "context": "" if number % 3 else f"c{number % 9}", "id": number // 7}
    for number, source in enumerate(SOURCES)
]


def test_normalize_drops_case_accelerators_space_and_final_punctuation() -> None:
    same = ["Save &As...", "save as\u2026", " Save\u00a0 as ", "_Save as:", "SAVE\nAS", "Save as\uff1a"]
    assert {normalize(text) for text in same} == {"save as"}
    assert normalize("a.b, c") == "a.b, c" and normalize("%1 && %2?") == "%1 && %2" and normalize(" ... ") == ""


def test_stable_key_is_the_same_on_every_machine() -> None:
    # blake2b of 8 bytes, big-endian, signed: `printf a | b2sum -l 64`
    assert stable_key("a") == int.from_bytes(bytes.fromhex("40f89e395b66422f"), "big", signed=True)
    assert stable_key({"b": 1, "a": 2}) == stable_key({"a": 2, "b": 1}) != stable_key("1")


def test_without_split_by_the_rows_are_those_of_before() -> None:
    corpus = load(write("t.jsonl", ROWS[:12]), validation_split=0.25)
    assert corpus.train["index"][:] == [0, 6, 11, 3, 7, 2, 1, 5, 10]
    assert corpus.valid["index"][:] == [9, 8, 4]
    assert corpus.report["sources"]["valid"] == [{"cut_from": "train", "validation_split": 0.25, "split_seed": 20}]
    assert "split_by" not in json.dumps(corpus.report)


def test_split_by_source_keeps_each_source_on_one_side() -> None:
    name = write("t.jsonl", [*ROWS, {"en": " ", "fr": "x"}, {"fr": "x"}])
    corpus = load(name, split_by=["source"], validation_split=0.2)
    sides = [{normalize(source) for source in rows["source"][:]} for rows in (corpus.train, corpus.valid)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 40
    assert sorted([*corpus.train["index"][:], *corpus.valid["index"][:]]) == list(range(200))
    assert corpus.valid["index"][:] == sorted(corpus.valid["index"][:])
    counts = corpus.report["counts"]
    # 202 rows - floor(0.8 * 202) = 41; groups of 5 rows and two rows without a source reach 40, 41 or 42.
    assert counts["valid"]["loaded"] + counts["train"]["loaded"] == 202 and counts["valid"]["loaded"] == 41
    assert "valid: 41 of 202 rows (20.3 %) by --split_by source, 42 groups in all" in describe(corpus.report)
    again = load(name, split_by=["source"], validation_split=0.2)
    assert again.report == corpus.report and again.valid["index"][:] == corpus.valid["index"][:]
    other = load(name, split_by=["source"], validation_split=0.2, split_seed=21)
    assert other.valid["index"][:] != corpus.valid["index"][:]
    fingerprints = {one.report["fingerprint"] for one in (corpus, other, load(name, validation_split=0.2))}
    assert len(fingerprints) == 3


def test_split_by_file_keeps_files_whole() -> None:
    files = [write(f"{number}.jsonl", ROWS[5 * number : 5 * number + 5]) for number in range(10)]
    corpus = load(*files, split_by=["file"], validation_split=0.3)
    assert len(corpus.valid) == 15
    assert len({index // 5 for index in corpus.valid["index"]}) == 3
    assert not {index // 5 for index in corpus.valid["index"]} & {index // 5 for index in corpus.train["index"]}
    one = error_of(files[0], split_by=["file"])
    assert one.startswith("--split_by file: cannot split rows of one file (got 5 rows). Give another --split_by")
    texts = [Path("a.en"), Path("a.fr")]
    for path in texts:
        path.write_text("one\ntwo\nthree\n")
    assert "--split_by file: cannot split rows of one file (got 3 rows)" in error_of(
        *map(str, texts), split_by=["file"]
    )
    assert "--split_by column: plain text has no columns (got id)" in error_of(
        *map(str, texts), split_by=["column", "id"]
    )
    assert len(load(*map(str, texts), split_by=["source"]).valid) == 1


def test_split_by_column_keeps_equal_values_together() -> None:
    name = write("t.jsonl", ROWS)
    by_id = load(name, split_by=["column", "id"], validation_split=0.1)
    assert not {index // 7 for index in by_id.valid["index"]} & {index // 7 for index in by_id.train["index"]}
    by_context = load(name, split_by=["column", "context"], validation_split=0.1)
    # Values c0, c3 and c6, and 133 rows of 200 without a value, each a group alone.
    assert by_context.report["sources"]["valid"][0]["num_groups"] == 3 + 133
    sides = [
        {ROWS[index]["context"] for index in rows["index"]} - {""} for rows in (by_context.train, by_context.valid)
    ]
    assert not sides[0] & sides[1] and len(by_context.valid) == 20
    missing = error_of(name, split_by=["column", "file"])
    assert missing == (
        "--split_by column: no row of t.jsonl has this column (got file). Choose from: context, en, fr, id."
    )
    same = write("same.jsonl", [{**row, "id": 1} for row in ROWS])
    assert "cannot split rows with one value (got 200 rows)" in error_of(same, split_by=["column", "id"])


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_split_by_column_of_every_kind_of_rows(kind: str) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    fields: dict[str, Any] = {"source_lang": "en", "target_lang": "fr", "split_by": ["column", "id"]}
    if kind == "folder":
        Path("set").mkdir()
        rows.to_json("set/train.jsonl")
        data = DataConfig(dataset_name="set", **fields)
    else:
        getattr(rows, f"to_{kind}")(f"t.{kind}")
        data = DataConfig(train_file=[f"t.{kind}"], **fields)
    expected = load(write("t.jsonl", ROWS), split_by=["column", "id"]).valid["index"][:]
    assert load_corpus(data).valid["index"][:] == expected


def test_split_by_is_refused_where_nothing_is_split() -> None:
    name = write("t.jsonl", ROWS)
    assert "--split_by: --validation_file is given as well" in error_of(
        name, split_by=["source"], validation_file=[name]
    )
    for words in (["row"], ["column"], ["source", "id"], ["column", "a", "b"]):
        assert "--split_by: expected source, file, or column NAME (got " in error_of(name, split_by=words)
    assert DataConfig(split_by=["column my id"]).split_by == ["column", "my id"]
    Path("set").mkdir()
    for split in ("train", "validation"):
        write(f"set/{split}.jsonl", ROWS[:3])
    with pytest.raises(UserError, match="--split_by: set has validation rows, and nothing is split off"):
        load_corpus(DataConfig(dataset_name="set", source_lang="en", target_lang="fr", split_by=["source"]))
    write("test.jsonl", [{"en": "a", "fr": "b"}])  # which need not have the column
    corpus = load(name, split_by=["column", "id"], test_file=["test.jsonl"])
    assert corpus.test is not None and len(corpus.test) == 1


def test_split_by_is_read_from_flags_files_and_python() -> None:
    model = {"source_lang": "en", "target_lang": "fr", "train_tokenizer": True, "model_size": "tiny"}
    words = ["--train_file", "a.po", "--source_lang", "en", "--target_lang", "fr", "--train_tokenizer", "--model_size"]
    given = parse_config([*words, "tiny", "--split_by", "column", "id"])
    assert given.data.split_by == ["column", "id"]
    Path("run.yaml").write_text(to_yaml(given))
    assert parse_config(["run.yaml"]).data.split_by == ["column", "id"]
    for value, expected in (("source", ["source"]), ("column id", ["column", "id"]), (["file"], ["file"])):
        assert config_from({**model, "train_file": "a.po", "split_by": value}).data.split_by == expected
    # Each of several pairs is split by itself.
    pairs = DataConfig(train_file=["t.jsonl"], pairs="en-fr,fr-en", split_by=["source"])
    write("t.jsonl", ROWS)
    of_pairs = [load_corpus(one) for one in pairs.of_pairs()]
    assert [len(one.valid) for one in of_pairs] == [20, 20]
    assert of_pairs[0].valid["index"][:] != of_pairs[1].valid["index"][:]


@pytest.mark.slow
def test_a_run_scores_unseen_sources_apart(new_run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pairs = [("Open the file", "Ouvrir le fichier"), ("Close it", "Le fermer"), ("Save", "Enregistrer")] * 11
    train = write("train.jsonl", [{"en": en, "fr": fr} for en, fr in pairs])
    held_out = [{"en": "&Open the file...", "fr": "a"}, {"en": "Other", "fr": "b"}, {"en": "Save", "fr": "c"}]
    files = {"train_file": train, "validation_file": write("valid.jsonl", held_out)}
    run = new_run(**files, test_file=write("test.jsonl", held_out[1:2]), metric_for_best_model="bleu_unseen")
    printed = capsys.readouterr().out
    assert "valid: 33.3 % of the sources are in the training rows too, 66.7 % but for case" in printed
    assert "test: no source is in the training rows too" in printed and "--split_by" not in printed
    stored = json.loads((tmp_path / "run/data.json").read_text())["shared_with_train"]
    assert stored["valid"]["sources_normalized"] == 0.66667 and stored["test"]["sources"] == 0
    report = evaluate_and_record(run)
    (line,) = run.folder.metrics.lines()
    assert (line["num_sentences"], line["num_unseen"]) == (3, 1) and "|rows:1" in line["bleu_unseen_signature"]
    assert run.state.best_score == line["bleu_unseen"] == report.scores["bleu_unseen"].value
    run.test = run.test.first(1)
    assert evaluate_on(run, run.test).num_unseen == 1 and "bleu_unseen" not in run.folder.metrics.lines()[-1]
    files["validation_file"] = train
    with pytest.raises(UserError, match="--metric_for_best_model: every source of validation is in the training rows"):
        new_run("other", **files, metric_for_best_model="bleu_unseen")


@pytest.mark.parametrize("seed", range(20))
def test_choose_groups_is_near_and_never_all_or_none(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, int(rng.integers(2, 60)), size=int(rng.integers(2, 60)))
    num_wanted = int(rng.integers(1, sizes.sum()))
    is_chosen = choose_groups(sizes, num_wanted, seed)
    assert 0 < is_chosen.sum() < len(sizes)
    assert (choose_groups(sizes, num_wanted, seed) == is_chosen).all()
    # What is left over does not fit, or is farther away: the distance is at most half of the smallest other group,
    # unless one group must be chosen, or one left.
    distance = abs(int(sizes[is_chosen].sum()) - num_wanted)
    if 1 < is_chosen.sum() < len(sizes) - 1:
        assert distance <= sizes[~is_chosen].min() / 2


def test_choose_groups_of_few_finds_the_nearest_share() -> None:
    assert choose_groups(np.array([1, 99]), 99, 0).tolist() == [False, True]
    assert choose_groups(np.array([1000, 300, 40]), 45, 0).tolist() == [False, False, True]
    assert choose_groups(np.array([500, 700]), 1, 0).tolist() == [True, False]


def rows_of(*pairs: tuple[str, str]) -> datasets.Dataset:
    sources, targets = zip(*pairs, strict=True)
    return datasets.Dataset.from_dict({"source": list(sources), "target": list(targets)})


def test_overlaps_counts_sources_and_pairs_in_train() -> None:
    train = rows_of(("&Open", "Ouvrir"), ("Close 1", "Fermer 1"), ("a", "b"))
    valid = rows_of(("&Open", "Ouvre"), ("open.", "ouvrir"), ("Close 2", "Fermer 2"), ("new", "neuf"), ("a", "b"))
    found = overlaps(train, {"valid": valid})["valid"]
    # Only the letters of "Close 2" are in train; "open." is "&Open" but for case, accelerator and full stop.
    assert found.shares == {
        "sources": 0.4, "pairs": 0.2, "sources_normalized": 0.6, "sources_by_letters": 0.8, "pairs_by_letters": 0.6,
    }  # fmt: skip
    assert found.is_unseen.tolist() == [False, False, True, True, False]
    assert leak_line("valid", found.shares, can_split_by=True) == (
        "valid: 40.0 % of the sources are in the training rows too, 60.0 % but for case, accelerators and punctuation, "
        "and 60.0 % of the pairs by letters alone; --split_by source keeps sources apart"
    )
    none = overlaps(train, {"test": rows_of(("x", "y"))})["test"]
    assert leak_line("test", none.shares, can_split_by=False) == "test: no source is in the training rows too"


KDE = Path(__file__).parents[2].parent / "shared" / "data" / "kde_en_fr.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not KDE.exists(), reason=f"{KDE} is absent")
def test_a_random_split_of_kde_leaks_and_one_by_source_does_not() -> None:
    with gzip.open(KDE, "rt", encoding="utf-8") as file:
        pairs = [json.loads(line)["translation"] for line in file]
    rows = rows_of(*((pair["en"], pair["fr"]) for pair in pairs))
    found = {}
    for by in (None, ["source"]):
        train, valid, _ = cut(rows, DataConfig(split_by=by))
        assert (len(train), len(valid)) == (62_732, 6_971)
        found[bool(by)] = overlaps(train, {"valid": valid})["valid"]
    # Over 20 other seeds 7.8 to 8.6 % of the sources and 18.1 to 19.4 % of the pairs were found.
    shares = found[False].shares
    assert (shares["sources"], shares["pairs_by_letters"]) == (0.08335, 0.18003)
    assert (
        found[True].is_unseen.all() and found[True].shares["sources"] == found[True].shares["sources_normalized"] == 0
    )
    assert 0 < found[True].shares["pairs_by_letters"] < shares["pairs_by_letters"]


def test_choose_groups_goes_on_after_a_group_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtloop.data.splits._NUM_ORDERS", 1)  # otherwise a lucky order is found
    sizes = np.array([50] * 20 + [1] * 100)
    assert [int(sizes[choose_groups(sizes, 30, seed)].sum()) for seed in range(5)] == [30] * 5
