"""Test tokenization: training, loading, language codes, fingerprints and encoding with real tokenizers."""

import gzip
import hashlib
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import multiprocess
import numpy as np
import pytest
import sentencepiece
from transformers import (
    BartConfig,
    M2M100Tokenizer,
    MarianConfig,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    MT5Config,
    NllbTokenizer,
    T5Config,
    T5Tokenizer,
    UMT5Config,
)

from mtloop.errors import RunFailed, UserError
from mtloop.tokenization import training
from mtloop.tokenization.encoding import encode_rows, tokenizer_fingerprint
from mtloop.tokenization.loading import (
    can_tell_pairs_apart,
    for_languages,
    known_languages,
    load_tokenizer,
    remember_prefix,
    source_prefix,
    target_language_token,
)
from mtloop.tokenization.training import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
KDE = ROOT.parent / "shared" / "data" / "kde_en_fr.jsonl.gz"
VOCAB_SIZE = 80

SYLLABLES = ["ba", "ri", "to", "lu", "ne", "sko", "fa", "pim"]


def pairs():
    """400 pairs of made-up sentences of 3 to 9 words; the target is the source backwards: they share their pieces."""
    rng = random.Random(0)
    words = ["".join(chosen) for chosen in itertools.product(SYLLABLES, repeat=2)] + ["open", "close", "the", "file"]
    sources = [" ".join(rng.choices(words, k=rng.randint(3, 9))) + "." for _ in range(400)]
    return [(text, " ".join(reversed(text.split()))) for text in sources]


def texts():
    return [text for pair in pairs() for text in pair]


@pytest.fixture(scope="module")
def marian_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian") / "tokenizer"
    train_tokenizer(texts(), vocab_size=VOCAB_SIZE, output_dir=folder, source_lang="en", target_lang="fr")
    return folder


@pytest.fixture
def marian(marian_dir):
    return load_tokenizer(str(marian_dir), source_lang="en", target_lang="fr")


def scored_pieces(marian_dir):
    model = sentencepiece.SentencePieceProcessor(model_file=str(marian_dir / "source.spm"))
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(2, model.get_piece_size())]


@pytest.fixture
def t5(marian_dir):
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + scored_pieces(marian_dir), extra_ids=0)


@pytest.fixture
def mbart_dir(marian_dir, tmp_path):
    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    MBartTokenizer(vocab=specials + scored_pieces(marian_dir)).save_pretrained(tmp_path / "mbart")
    return tmp_path / "mbart"


@pytest.fixture
def mbart50_dir(marian_dir, tmp_path):
    # The constructor replaces the first three pieces (sentencepiece's own <unk>, <s>, </s>) and adds its codes.
    head = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    MBart50Tokenizer(vocab=head + scored_pieces(marian_dir)).save_pretrained(tmp_path / "mbart50")
    return tmp_path / "mbart50"


@pytest.fixture
def m2m_dir(marian_dir, tmp_path):
    pieces = ["<s>", "<pad>", "</s>", "<unk>"] + [piece for piece, _ in scored_pieces(marian_dir)]
    vocab = tmp_path / "m2m-vocab.json"
    vocab.write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    M2M100Tokenizer(str(vocab), str(marian_dir / "source.spm")).save_pretrained(tmp_path / "m2m")
    return tmp_path / "m2m"


@pytest.fixture
def nllb_dir(tmp_path):
    letters = sorted({char for text in texts() for char in text} - {" "}) + ["▁"]
    vocab = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "the"])}
    NllbTokenizer(vocab=vocab, merges=[("t", "h"), ("th", "e")]).save_pretrained(tmp_path / "nllb")
    return tmp_path / "nllb"


def hub_cache(home, repo, revisions):
    """Lay out a Hub cache as `hf download` does: refs name commits, snapshots hold their files."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    for revision, folder in revisions.items():
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)


OTHER_PROCESS = """
import json, sys
from pathlib import Path
import datasets
from mtloop.errors import UserError
from mtloop.tokenization.encoding import encode_rows, tokenizer_fingerprint
from mtloop.tokenization.loading import load_tokenizer
from mtloop.tokenization.training import train_tokenizer

texts, vocab_size, folder, names, rows = json.loads(sys.argv[1])

def load(name):
    try:
        return len(load_tokenizer(name, source_lang=None, target_lang=None))
    except UserError as error:
        return str(error)

trained = train_tokenizer(
    texts, vocab_size=vocab_size, output_dir=Path(folder), source_lang="en", target_lang="fr")
encoded = encode_rows(datasets.load_from_disk(rows), trained, max_source_length=12, max_target_length=20,
    source_prefix=None, num_workers=1)
print(json.dumps({
    "fingerprint": tokenizer_fingerprint(trained),
    "loaded": {name: load(name) for name in names},
    "encoded": [encoded.rows[:], encoded.source_lengths.tolist(), encoded.is_long.tolist()],
}))
"""


@pytest.fixture(scope="module")
def other_process(marian_dir, tmp_path_factory):
    """What one more process makes of the same texts, Hub names and rows: slow to start, so one for all tests."""
    home = tmp_path_factory.mktemp("other process")
    (home / "config only").mkdir()
    (home / "config only" / "config.json").write_text('{"model_type": "t5"}')
    for name, vocab_size in (("smaller", VOCAB_SIZE), ("larger", VOCAB_SIZE + 8)):
        train_tokenizer(texts(), vocab_size=vocab_size, output_dir=home / name, source_lang=None, target_lang=None)
        (home / name / "config.json").write_text('{"model_type": "marian"}')
    hub_cache(home, "ns/name", {"main": home / "smaller", "v2": home / "larger", "bare": home / "config only"})
    make_rows().save_to_disk(home / "rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
        marian = load_tokenizer(str(marian_dir), source_lang="en", target_lang="fr")
        encoded = encode(datasets.load_from_disk(home / "rows"), marian)
    cache_before = listing(home / "cache")
    names = ["ns/name", "ns/name@main", "ns/name@v2", "ns/name@bare", "nobody/nothing@v2"]
    arguments = json.dumps([texts(), VOCAB_SIZE, str(home / "made" / "named otherwise"), names, str(home / "rows")])
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_DATASETS_CACHE": str(home / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,  # the assert shows what went wrong
    )
    assert done.returncode == 0, done.stderr
    return {
        **json.loads(done.stdout),
        "stderr": done.stderr,
        "folder": home / "made" / "named otherwise",
        "encoded_here": encoded,
        "cache_before": cache_before,
        "cache_after": listing(home / "cache"),
    }


def listing(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}


# Training


def test_train_tokenizer_writes_a_marian_folder_of_the_given_size(marian_dir, marian):
    assert type(marian) is MarianTokenizer
    assert len(marian) == VOCAB_SIZE
    assert (marian.eos_token_id, marian.unk_token_id, marian.pad_token_id) == (0, 1, VOCAB_SIZE - 1)
    assert marian.model_max_length == 512
    assert (marian.source_lang, marian.target_lang) == ("en", "fr")
    vocabulary = json.loads((marian_dir / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(VOCAB_SIZE))
    assert (marian_dir / "source.spm").read_bytes() == (marian_dir / "target.spm").read_bytes()
    assert json.loads((marian_dir / "special_tokens_map.json").read_text())["pad_token"] == "<pad>"
    assert os.listdir(marian_dir.parent) == ["tokenizer"]


def test_train_tokenizer_keeps_the_ids_of_sentencepiece(marian_dir, marian):
    model = sentencepiece.SentencePieceProcessor(model_file=str(marian_dir / "source.spm"))
    for text in texts()[:50]:
        assert marian(text)["input_ids"] == [*model.encode(text), 0]
        assert marian(text_target=text)["input_ids"] == [*model.encode(text), 0]


TRICKY = [
    "open\tthe file",
    "open the file\nclose the file",
    "open the file\u00a0: close",
    "open  the   file",
    "remove </s> the <pad> file",
    "don 't open , the file .",
]


@pytest.mark.parametrize("text", TRICKY)
def test_trained_tokenizer_round_trips_text(tmp_path, text):
    # The trainer does not count the characters of its own symbols, so "</s>" alone would teach it no slash.
    corpus = [*texts(), *[*TRICKY, "open / close < file >"] * 20]
    tokenizer = train_tokenizer(
        corpus, vocab_size=VOCAB_SIZE, output_dir=tmp_path / "t", source_lang=None, target_lang=None
    )
    ids = tokenizer(text)["input_ids"]
    assert ids.count(0) == 1 and ids[-1] == 0 and 1 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_trained_tokenizer_has_tab_newline_and_no_break_space(marian):
    text = "open\tthe\nfile\u00a0."
    assert marian.decode(marian(text)["input_ids"], skip_special_tokens=True) == text


def test_trained_tokenizer_loses_only_what_the_docstring_lists(marian):
    def round_trip(text):
        return marian.decode(marian(text)["input_ids"], skip_special_tokens=True)

    assert round_trip(" \u00a0open the file\n") == "open the file"
    assert round_trip("open▁the") == "open the"
    assert round_trip("open 文 the") == "open  the"
    assert round_trip(">>fr<<open") == "open"


@pytest.mark.slow
@pytest.mark.skipif(not KDE.is_file(), reason="the real KDE pairs are not beside the project")
def test_trained_tokenizer_round_trips_real_messages(tmp_path, is_full):
    with gzip.open(KDE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line)["translation"] for line in itertools.islice(lines, 4000 if is_full else 800)]
    corpus = [row[lang] for row in rows for lang in ("en", "fr")]
    tokenizer = train_tokenizer(corpus, vocab_size=800, output_dir=tmp_path / "t", source_lang="en", target_lang="fr")
    num_exact = 0
    for text in corpus:
        ids = tokenizer(text)["input_ids"]
        if 1 not in ids:
            assert tokenizer.decode(ids, skip_special_tokens=True) == text.strip()
            num_exact += 1
    # Characters outside the coverage of 99.98 % leave at most a few texts in a hundred with an <unk>.
    assert num_exact > 0.97 * len(corpus)


@pytest.mark.slow
def test_train_tokenizer_is_bitwise_equal_in_another_process(marian_dir, marian, other_process):
    again = other_process["folder"]
    assert other_process["fingerprint"] == tokenizer_fingerprint(marian)
    assert sorted(os.listdir(again)) == sorted(os.listdir(marian_dir))
    for file in os.listdir(marian_dir):
        assert (again / file).read_bytes() == (marian_dir / file).read_bytes(), file


@pytest.mark.parametrize(
    ("vocab_size", "pattern", "step"), [(8000, r"Use (\d+) or less", 8), (16, r"Use (\d+) or more", -8)]
)
def test_train_tokenizer_advises_the_limit_of_the_size(tmp_path, vocab_size, pattern, step):
    def train(size):
        train_tokenizer(texts(), vocab_size=size, output_dir=tmp_path / str(size), source_lang=None, target_lang=None)

    with pytest.raises(UserError, match=f"^--vocab_size: .*got {vocab_size}.. {pattern}") as caught:
        train(vocab_size)
    advised = int(caught.value.args[0].split("Use ")[1].split()[0])
    assert advised % 8 == 0
    train(advised)
    with pytest.raises(UserError, match="--vocab_size"):
        train(advised + step)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == [str(advised)]


def test_train_tokenizer_refuses_an_empty_corpus(tmp_path):
    with pytest.raises(UserError, match="all empty"):
        train_tokenizer(["", " \n"], vocab_size=80, output_dir=tmp_path / "t", source_lang=None, target_lang=None)


def test_train_tokenizer_reads_long_texts(tmp_path):
    # sentencepiece skips texts over 4,192 bytes; only the long one, of 80,004, has the letter q.
    corpus = [*texts(), "quick " * 13_334]
    tokenizer = train_tokenizer(
        corpus, vocab_size=VOCAB_SIZE, output_dir=tmp_path / "t", source_lang=None, target_lang=None
    )
    assert 1 not in tokenizer("q")["input_ids"]


def test_train_tokenizer_puts_language_tokens_before_pad(tmp_path):
    tokens = [">>fra<<", ">>deu<<"]
    tokenizer = train_tokenizer(
        texts(), vocab_size=80, output_dir=tmp_path / "t", source_lang="en", target_lang="fr", language_tokens=tokens
    )
    assert tokenizer.convert_tokens_to_ids([*tokens, "<pad>"]) == [77, 78, 79] and len(tokenizer) == 80
    plain = tokenizer(" open the file")["input_ids"]
    assert tokenizer(">>deu<< open the file")["input_ids"] == [78, *plain]
    with pytest.raises(UserError, match=r"^--vocab_size: too large for a corpus of .* Use (\d+) or less") as caught:
        train_tokenizer(
            texts(),
            vocab_size=8000,
            output_dir=tmp_path / "u",
            source_lang=None,
            target_lang=None,
            language_tokens=tokens,
        )
    largest = int(str(caught.value).split("Use ")[1].split()[0])
    train_tokenizer(
        texts(),
        vocab_size=largest,
        output_dir=tmp_path / "u",
        source_lang=None,
        target_lang=None,
        language_tokens=tokens,
    )


# Prefixes


def marian_of(languages, tmp_path):
    tokens = [f">>{language}<<" for language in languages]
    return train_tokenizer(
        texts(), vocab_size=80, output_dir=tmp_path / "m", source_lang=None, target_lang=None, language_tokens=tokens
    )


def test_source_prefix_of_multilingual_marian_is_the_language_token(tmp_path):
    tokenizer = marian_of(["fr", "fr_CA", "deu"], tmp_path)
    for wanted, token in (("fr", "fr"), ("French", "fr"), ("fr_CA", "fr_CA"), ("de", "deu")):
        assert source_prefix(MarianConfig(), tokenizer, "en", wanted) == f">>{token}<< "
    with pytest.raises(UserError, match=r"--target_lang: not given, .*>>deu<<, >>fr<<.*--source_prefix"):
        source_prefix(MarianConfig(), tokenizer, None, None)
    with pytest.raises(
        UserError, match="--target_lang: not a language of this tokenizer .got 'es'.. Give one of >>deu<<"
    ):
        source_prefix(MarianConfig(), tokenizer, "en", "es")


def test_source_prefix_ignores_a_single_language_token(tmp_path):
    tokenizer = marian_of(["fr"], tmp_path)
    assert source_prefix(MarianConfig(), tokenizer, "en", "fr") is None
    assert not can_tell_pairs_apart(MarianConfig(), tokenizer)


def test_source_prefix_of_t5_is_the_task_in_words(t5):
    words = "translate English to French: "
    assert source_prefix(T5Config(), t5, "en", "fr_FR") == words
    assert source_prefix(T5Config(), t5, None, None) is None  # columns: any text to text
    for config in (MT5Config(), UMT5Config()):
        assert source_prefix(config, t5, "en", "fr") is None
        assert source_prefix(config, t5, "eng", "fra_Latn", is_one_of_several=True) == words
        assert can_tell_pairs_apart(config, t5)
    assert source_prefix(BartConfig(), t5, "en", "fr", is_one_of_several=True) is None


@pytest.mark.parametrize("config", [T5Config(), MT5Config(), UMT5Config()], ids=["t5", "mt5", "umt5"])
def test_source_prefix_of_t5_is_the_language_token_of_its_vocabulary(marian_dir, config):
    tokens = ["<2en>", "<2fr>", "<2fr_CA>", "<2translate>", "<2FR>"]
    specials = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>", *tokens)]
    madlad = T5Tokenizer(vocab=specials + scored_pieces(marian_dir), extra_ids=0)
    assert known_languages(madlad) == ["<2en>", "<2fr>", "<2fr_CA>"] and can_tell_pairs_apart(config, madlad)
    for wanted, token in (("fr", "fr"), ("fra_Latn", "fr"), ("French", "fr"), ("fr_CA", "fr_CA"), ("<2en>", "en")):
        for several in (False, True):
            prefix = source_prefix(config, madlad, "de", wanted, is_one_of_several=several)
            assert prefix == f"<2{token}> "
            ids = madlad(prefix + "a")["input_ids"]
            assert madlad.convert_tokens_to_ids(prefix.strip()) in ids[:2] and madlad.unk_token_id not in ids[:2]
    with pytest.raises(UserError, match=r"^--target_lang: not a language .*\(got 'de'\)\. Give one of <2en>"):
        source_prefix(config, madlad, "en", "de")
    with pytest.raises(UserError, match=r"^--target_lang: not given, .*<2fr>.*--source_prefix"):
        source_prefix(config, madlad, None, None)
    remember_prefix(config, "en", "fr", "other: ")  # what an earlier run was trained with
    assert source_prefix(config, madlad, "en", "fr") == "other: "
    assert source_prefix(BartConfig(), madlad, "en", "fr") is None and not can_tell_pairs_apart(BartConfig(), madlad)


def test_remember_prefix_stores_it_as_t5_does(t5, tmp_path):
    config = BartConfig()
    remember_prefix(config, "English", "fr_FR", "en2fr ")
    config.save_pretrained(tmp_path)
    read = BartConfig.from_pretrained(tmp_path)
    assert read.task_specific_params == {"translation_en_to_fr": {"prefix": "en2fr "}}
    for languages in (("en", "fr"), ("eng_Latn", "French"), (None, None)):
        assert source_prefix(read, t5, *languages) == "en2fr "
    assert source_prefix(read, t5, "en", "de") is None
    remember_prefix(read, "fr", "en", "")
    assert source_prefix(read, t5, "fr", "en") == ""
    assert source_prefix(read, t5, None, None) is None
    with pytest.raises(UserError, match="--source_lang, --target_lang: not given, .*translation_fr_to_en"):
        source_prefix(read, t5, None, None, must_choose=True)
    remember_prefix(read, "en", "de", None)  # nothing to remember
    assert len(read.task_specific_params) == 2


def test_train_tokenizer_replaces_only_a_tokenizer(tmp_path, marian_dir):
    folder = tmp_path / "tokenizer"
    for vocab_size in (80, 88):
        trained = train_tokenizer(texts(), vocab_size=vocab_size, output_dir=folder, source_lang=None, target_lang=None)
        assert len(trained) == vocab_size
    assert os.listdir(tmp_path) == ["tokenizer"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="thesis"):
        train_tokenizer(
            texts(), vocab_size=VOCAB_SIZE, output_dir=tmp_path / "thesis", source_lang=None, target_lang=None
        )
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_sample_texts_is_seeded_and_uniform():
    numbers = [str(i) for i in range(20_000)]
    sample = training._sample_texts(iter(numbers), 1000)
    assert sample == training._sample_texts(iter(numbers), 1000)
    assert len(set(sample)) == 1000
    # Even numbers stand for sources: binomial(1000, 1/2) has a standard deviation of 16, and 80 is five of them. The
    # mean of 1,000 uniform draws from 0..20,000 is 10,000 with a standard deviation of 5,774 / sqrt(1000) = 183.
    assert abs(sum(int(text) % 2 for text in sample) - 500) < 80
    assert abs(np.mean([int(text) for text in sample]) - 10_000) < 5 * 183
    assert training._sample_texts(iter(["a", " ", "b"]), 1000) == ["a", "b"]


# Loading


@pytest.mark.slow
def test_load_tokenizer_hides_the_warning_about_sacremoses(other_process):
    assert other_process["loaded"]["ns/name"] == VOCAB_SIZE
    assert "sacremoses" not in other_process["stderr"]


def test_target_language_token_of_bilingual_tokenizers_is_none(marian, t5):
    assert target_language_token(marian) is None
    assert target_language_token(t5) is None


CODES = {
    "mbart_dir": ("en_XX", "fr_XX"),
    "mbart50_dir": ("en_XX", "uk_UA"),
    "m2m_dir": ("en", "fr"),
    "nllb_dir": ("eng_Latn", "fra_Latn"),
}


@pytest.mark.parametrize("family", CODES)
def test_load_tokenizer_sets_the_codes_of_multilingual_tokenizers(request, family):
    source_lang, target_lang = CODES[family]
    folder = request.getfixturevalue(family)
    tokenizer = load_tokenizer(str(folder), source_lang=source_lang, target_lang=target_lang)
    token = f"__{target_lang}__" if family == "m2m_dir" else target_lang
    forced = target_language_token(tokenizer)
    assert tokenizer.convert_ids_to_tokens(forced) == token
    assert forced != tokenizer.unk_token_id
    assert forced in tokenizer(text_target="open")["input_ids"]
    assert forced not in tokenizer("open")["input_ids"]
    assert tokenizer.convert_tokens_to_ids(token.replace(target_lang, source_lang)) in tokenizer("open")["input_ids"]


@pytest.mark.parametrize("family", CODES)
def test_load_tokenizer_accepts_any_code_or_name(request, family):
    target = {"uk_UA": ("uk", "ukr_Cyrl", "Ukrainian")}.get(CODES[family][1], ("fr", "fra_Latn", "French"))
    for source_lang, target_lang in zip(("en", "eng_Latn", "English"), target, strict=True):
        folder = str(request.getfixturevalue(family))
        tokenizer = load_tokenizer(folder, source_lang=source_lang, target_lang=target_lang)
        assert (tokenizer.src_lang, tokenizer.tgt_lang) == CODES[family]


def test_for_languages_returns_a_copy(mbart_dir):
    tokenizer = load_tokenizer(str(mbart_dir), source_lang="en", target_lang="fr")
    before = tokenizer("open", text_target="open")
    other = for_languages(tokenizer, "fr", "en")
    after = other("open", text_target="open")
    assert after["input_ids"][-1] == before["labels"][-1] == tokenizer.convert_tokens_to_ids("fr_XX")
    assert after["labels"][-1] == before["input_ids"][-1] == tokenizer.convert_tokens_to_ids("en_XX")
    assert tokenizer("open", text_target="open") == before


@pytest.mark.parametrize(
    ("family", "wrong", "advice"),
    [
        ("mbart_dir", "Klingon", "Give one of"),
        ("nllb_dir", "tlh", "Give one of"),
        ("m2m_dir", "fr-fr-fr-fr", "Give one of"),
    ],
)
def test_load_tokenizer_refuses_an_unknown_language_with_candidates(request, family, wrong, advice):
    folder = request.getfixturevalue(family)
    with pytest.raises(UserError, match=f"--target_lang: not a language .*got '{wrong}'.. {advice}"):
        load_tokenizer(str(folder), source_lang=CODES[family][0], target_lang=wrong)
    with pytest.raises(UserError, match=f"--source_lang: .*got '{wrong}'"):
        load_tokenizer(str(folder), source_lang=wrong, target_lang=CODES[family][1])


def test_load_tokenizer_refuses_a_special_token_as_language(nllb_dir):
    with pytest.raises(UserError, match="--target_lang: .*got '<mask>'"):
        load_tokenizer(str(nllb_dir), source_lang="eng_Latn", target_lang="<mask>")


def test_load_tokenizer_needs_both_codes_unless_stored(mbart_dir, tmp_path):
    with pytest.raises(UserError, match="--source_lang: not given"):
        load_tokenizer(str(mbart_dir), source_lang=None, target_lang="fr_XX")
    with pytest.raises(UserError, match="--target_lang: not given"):
        load_tokenizer(str(mbart_dir), source_lang="en_XX", target_lang=None)
    MBartTokenizer.from_pretrained(mbart_dir, src_lang="de_DE", tgt_lang="it_IT").save_pretrained(tmp_path / "stored")
    tokenizer = load_tokenizer(str(tmp_path / "stored"), source_lang=None, target_lang=None)
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("de_DE", "it_IT")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"config.json": '{"model_type": "t5"}'},  # AutoTokenizer makes an empty T5Tokenizer of it without a word
        {"config.json": '{"model_type": "marian"}'},
        {"tokenizer_config.json": "{broken"},
        {"tokenizer_config.json": '{"tokenizer_class": "MarianTokenizer"}'},
    ],
)
def test_load_tokenizer_refuses_a_folder_without_tokenizer(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="the folder has no valid tokenizer") as caught:
        load_tokenizer(str(tmp_path), source_lang=None, target_lang=None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_load_tokenizer_distinguishes_missing_folder_and_unreachable_name(tmp_path, other_process):
    with pytest.raises(UserError, match="there is no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"), source_lang=None, target_lang=None)
    message = other_process["loaded"]["nobody/nothing@v2"]
    assert "'nobody/nothing@v2'" in message
    assert "`hf download nobody/nothing`" in message
    assert "\n" not in message


@pytest.mark.slow
def test_load_tokenizer_reads_a_revision_from_the_cache(other_process):
    loaded = other_process["loaded"]
    assert loaded["ns/name"] == loaded["ns/name@main"] == VOCAB_SIZE
    assert loaded["ns/name@v2"] == VOCAB_SIZE + 8
    # AutoTokenizer makes an empty T5Tokenizer of a repository with a config.json alone.
    assert "no vocabulary file" in loaded["ns/name@bare"]


def test_load_tokenizer_refuses_a_tokenizer_without_padding(t5, tmp_path):
    t5.pad_token = None
    t5.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    # PreTrainedTokenizerFast takes a missing pad_token for none, T5Tokenizer for its default.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("pad_token", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no padding token"):
        load_tokenizer(str(tmp_path), source_lang=None, target_lang=None)


# Fingerprints


def test_fingerprint_is_stable_after_copying_calls_and_pickling(marian, t5, mbart_dir, m2m_dir, tmp_path):
    mbart = load_tokenizer(str(mbart_dir), source_lang="en_XX", target_lang="fr_XX")
    m2m = load_tokenizer(str(m2m_dir), source_lang="en", target_lang="fr")
    for name, tokenizer, langs in (
        ("a", marian, (None, None)),
        ("b", mbart, ("en_XX", "fr_XX")),
        ("c", m2m, ("en", "fr")),
    ):
        before = tokenizer_fingerprint(tokenizer)
        tokenizer(["open", "open the file here"], text_target=["a", "b"], truncation=True, max_length=3, padding=True)
        assert tokenizer_fingerprint(tokenizer) == before
        assert tokenizer_fingerprint(pickle.loads(pickle.dumps(tokenizer))) == before
        tokenizer.save_pretrained(tmp_path / name)
        copy = load_tokenizer(str(tmp_path / name), source_lang=langs[0], target_lang=langs[1])
        assert tokenizer_fingerprint(copy) == before
    t5.save_pretrained(tmp_path / "t5")
    first = load_tokenizer(str(tmp_path / "t5"), source_lang=None, target_lang=None)
    first.save_pretrained(tmp_path / "t5-again")
    second = load_tokenizer(str(tmp_path / "t5-again"), source_lang=None, target_lang=None)
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(second)


def test_fingerprint_changes_with_tokens_scores_and_languages(marian_dir, mbart_dir):
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = scored_pieces(marian_dir)
    other_piece = [*pieces[:-1], ("new", pieces[-1][1])]
    other_score = [*pieces[:-1], (pieces[-1][0], pieces[-1][1] - 0.5)]
    made = [T5Tokenizer(vocab=specials + chosen, extra_ids=0) for chosen in (pieces, other_piece, other_score)]
    made.append(T5Tokenizer(vocab=specials + pieces, extra_ids=0, pad_token="</s>"))
    made.append(T5Tokenizer(vocab=specials + pieces, extra_ids=1))
    for target_lang in ("fr_XX", "de_DE"):
        made.append(load_tokenizer(str(mbart_dir), source_lang="en_XX", target_lang=target_lang))
    fingerprints = [tokenizer_fingerprint(tokenizer) for tokenizer in made]
    assert len(set(fingerprints)) == len(made)


def test_fingerprint_of_marian_includes_scores(marian_dir, marian, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(marian_dir, copy)
    # A piece of the model is the text, field 1, and its float32 score, field 2 (tag 0x15): the score of "." is changed
    # by its lowest bit, everything else stays.
    model = bytearray((copy / "target.spm").read_bytes())
    at = model.index(b"\x0a\x01.\x15") + 4
    model[at] ^= 1
    (copy / "target.spm").write_bytes(model)
    changed = load_tokenizer(str(copy), source_lang=None, target_lang=None)
    assert changed.get_vocab() == marian.get_vocab()
    assert tokenizer_fingerprint(changed) != tokenizer_fingerprint(marian)


# Encoding


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "mtloop"


def make_rows(num_rows=300):
    chosen = random.Random(1).choices(pairs(), k=num_rows)
    sources = [source for source, _ in chosen]
    targets = [target * (1 + i % 3) for i, (_, target) in enumerate(chosen)]
    sources[7] = ""
    return datasets.Dataset.from_dict({"index": list(range(num_rows)), "source": sources, "target": targets})


def encode(rows, tokenizer, **changes):
    settings = {"max_source_length": 12, "max_target_length": 20, "source_prefix": None, "num_workers": 1, **changes}
    return encode_rows(rows, tokenizer, **settings)


def test_a_cache_that_cannot_be_written_is_named(marian_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(RunFailed, match=f"^HF_DATASETS_CACHE: cannot write rows to .*{tmp_path}/file/cache .*HF_HOME"):
        encode(make_rows(30), marian_tokenizer)


def check_against_the_plain_tokenizer(rows, tokenizer, encoded, prefix=""):
    num_long_sources = num_long_targets = 0
    for i, row in enumerate(rows):
        source = prefix + row["source"]
        # The two limits differ, so the plain call is made once for each side.
        input_ids = tokenizer(source, truncation=True, max_length=12)["input_ids"]
        labels = tokenizer(source, text_target=row["target"], truncation=True, max_length=20)["labels"]
        assert encoded.rows[i] == {"input_ids": input_ids, "labels": labels}
        assert (encoded.source_lengths[i], encoded.target_lengths[i]) == (len(input_ids), len(labels))
        is_long_source = len(tokenizer(source)["input_ids"]) > 12
        is_long_target = len(tokenizer(text_target=row["target"])["input_ids"]) > 20
        assert encoded.is_long[i] == (is_long_source or is_long_target)
        num_long_sources += is_long_source
        num_long_targets += is_long_target
    assert (encoded.num_long_sources, encoded.num_long_targets) == (num_long_sources, num_long_targets)
    assert 0 < num_long_sources < len(rows) and 0 < num_long_targets < len(rows)


@pytest.mark.parametrize("family", ["marian", "t5"])
@pytest.mark.parametrize("prefix", ["show: ", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_encode_rows_equals_the_tokenizer(request, family, prefix):
    tokenizer = request.getfixturevalue(family)
    rows = make_rows()
    encoded = encode(rows, tokenizer, source_prefix=prefix)
    check_against_the_plain_tokenizer(rows, tokenizer, encoded, prefix or "")
    eos = tokenizer.eos_token_id
    assert all(row["input_ids"][-1] == eos and row["labels"][-1] == eos for row in encoded.rows)


@pytest.mark.parametrize("family", CODES)
def test_encode_rows_adds_both_language_codes(request, family):
    source_lang, target_lang = CODES[family]
    tokenizer = load_tokenizer(str(request.getfixturevalue(family)), source_lang=source_lang, target_lang=target_lang)
    rows = make_rows(30)
    encoded = encode(rows, tokenizer, max_source_length=64, max_target_length=64)
    for row, ids in zip(rows, encoded.rows, strict=True):
        assert ids["input_ids"] == tokenizer(row["source"], truncation=True, max_length=64)["input_ids"]
        labels = tokenizer(row["source"], text_target=row["target"], truncation=True, max_length=64)["labels"]
        assert ids["labels"] == labels
        assert target_language_token(tokenizer) in ids["labels"]


def test_encode_rows_uses_both_vocabularies_of_marian(marian_dir, tmp_path):
    apart = tmp_path / "apart"
    shutil.copytree(marian_dir, apart)
    # The target model of another training: its pieces cut the same text elsewhere.
    backwards = [text[::-1] for text in texts()]
    train_tokenizer(backwards, vocab_size=VOCAB_SIZE, output_dir=tmp_path / "other", source_lang=None, target_lang=None)
    shutil.copy(tmp_path / "other" / "target.spm", apart / "target.spm")
    tokenizer = load_tokenizer(str(apart), source_lang=None, target_lang=None)
    rows = datasets.Dataset.from_dict({"index": [0], "source": ["open the file"], "target": ["open the file"]})
    encoded = encode(rows, tokenizer, max_source_length=64, max_target_length=64)
    assert encoded.rows[0]["input_ids"] == tokenizer("open the file")["input_ids"]
    assert encoded.rows[0]["labels"] == tokenizer(text_target="open the file")["input_ids"]
    assert encoded.rows[0]["input_ids"] != encoded.rows[0]["labels"]


def test_encode_rows_is_memory_mapped_int32(marian, cache):
    encoded = encode(make_rows(), marian)
    int32_list = datasets.List(datasets.Value("int32"))
    assert encoded.rows.features == {"input_ids": int32_list, "labels": int32_list}
    assert (encoded.source_lengths.dtype, encoded.target_lengths.dtype) == (np.int32, np.int32)
    assert encoded.is_long.dtype == np.bool_
    assert encoded.rows._indices is None
    # Rows that were in memory come back from a file as well.
    assert [Path(file["filename"]).parent for file in encoded.rows.cache_files] == [cache]


@pytest.mark.slow
def test_encode_rows_with_workers_shares_the_cache(marian, cache):
    rows = make_rows()
    with_workers = encode(rows, marian, num_workers=2)
    files = sorted(os.listdir(cache))
    assert len(files) == 2
    alone = encode(rows, marian, num_workers=1)
    assert sorted(os.listdir(cache)) == files
    again = encode(rows, marian, num_workers=1, overwrite_cache=True)
    for other in (alone, again):
        assert other.rows[:] == with_workers.rows[:]
        assert np.array_equal(other.source_lengths, with_workers.source_lengths)
        assert np.array_equal(other.is_long, with_workers.is_long)
    check_against_the_plain_tokenizer(rows, marian, with_workers)


def test_encode_rows_keeps_the_order_of_selected_rows(marian):
    rows = make_rows().shuffle(seed=3).select(range(50))
    check_against_the_plain_tokenizer(rows, marian, encode(rows, marian))


@pytest.mark.slow
def test_encode_rows_shares_the_cache_between_processes(other_process):
    here = other_process["encoded_here"]
    assert other_process["encoded"] == [here.rows[:], here.source_lengths.tolist(), here.is_long.tolist()]
    assert other_process["cache_before"] == other_process["cache_after"]
    assert any("encoded-" in path for path in other_process["cache_after"])


@pytest.mark.parametrize("change", [{"max_source_length": 11}, {"max_target_length": 19}, {"source_prefix": "show: "}])
def test_encode_rows_caches_each_setting(marian, cache, change):
    rows = make_rows()
    plain = encode(rows, marian)
    changed = encode(rows, marian, **change)
    assert len(os.listdir(cache)) == 2
    assert changed.rows[:] != plain.rows[:]


@pytest.mark.slow
def test_encode_rows_caches_each_tokenizer_and_corpus(marian, t5, cache):
    rows = make_rows()
    encode(rows, marian)
    encode(rows, t5)
    encode(rows.select(range(299)), marian)
    assert len(os.listdir(cache)) == 3


def test_encode_rows_overwrites_the_cache(marian, cache):
    rows = make_rows()
    encode(rows, marian)
    (file,) = cache.iterdir()
    before = file.stat().st_ino
    encode(rows, marian)
    assert file.stat().st_ino == before
    encode(rows, marian, overwrite_cache=True)
    assert file.stat().st_ino != before


def test_encode_rows_refuses_no_rows(marian):
    with pytest.raises(ValueError, match="no rows to encode"):
        encode(make_rows().select([]), marian)


@pytest.mark.parametrize("change", [{"model_max_length": "x"}, {"model_max_length": [1]}, {"pad_token": 7}])
def test_load_tokenizer_refuses_values_of_a_wrong_type(change, marian_tokenizer, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(marian_tokenizer.name_or_path, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="the folder has no valid tokenizer"):
        load_tokenizer(str(folder), source_lang="en", target_lang="fr")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_encode_rows_names_a_worker_that_dies_or_is_stopped(marian, cache, monkeypatch, number):
    def fail(*args, **kwargs):
        if multiprocess.current_process().name != "MainProcess":
            os.kill(os.getpid(), number)
        return {}

    monkeypatch.setattr("mtloop.tokenization.encoding._encode_batch", fail)
    with pytest.raises(RunFailed, match="^--preprocessing_num_workers: a process that tokenizes was killed or stopped"):
        encode(make_rows(40), marian, num_workers=2, worker_timeout=0.1, overwrite_cache=True)
