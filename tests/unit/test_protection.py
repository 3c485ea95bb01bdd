"""Test protection: masks are restored exactly, whatever the text, and every family carries them with their spaces."""

import copy
import json
import random
import re

import numpy as np
import pytest

from mtloop.data.demo.grammar import demo_pairs
from mtloop.errors import UserError
from mtloop.generation.conversion import convert
from mtloop.generation.engine import EngineOptions, TransformersEngine, as_encoded
from mtloop.generation.generate import SearchOptions
from mtloop.generation.surviving import search_surviving
from mtloop.placeholders import lost
from mtloop.tokenization.encoding import decode, decode_best, encode_rows, encode_sources, tokenizer_fingerprint
from mtloop.tokenization.loading import for_languages, load_tokenizer
from mtloop.tokenization.protection import (
    MASKS,
    add_masks,
    check_masks,
    is_protected,
    mask,
    mask_target,
    restore,
)
from mtloop.tokenization.training import train_tokenizer
from mtloop.trainer.loop import train
from mtloop.translate.translator import Translator
from tests.support.families import FAMILIES, make_tokenizer

# Those that could be part of another have spaces.
PIECES = [
    "a", "file", " ", "  ", "(", ")",
    "%1", "%2", "%n", "%s", "%(name)s", "%%", " {0}", " ${x}", "<b>", "</b>", "&lt;",
    '<a href="x y">', " https://a.b/c ", " me@a.org ", "\n", " \n\n", "\t", "<ph0>", "<ph3>", "<ph99>", "&File",
    "5 %", "é",
]  # fmt: skip


def random_texts(number, pieces=PIECES, longest=14):
    rng = random.Random(0)
    return ["".join(rng.choices(pieces, k=rng.randint(0, longest))) for _ in range(number)]


def test_restore_undoes_mask():
    for text in random_texts(1_000):
        masked = mask(text)
        assert masked == masked.strip()
        assert "\n" not in masked or len(set(re.findall(r"<ph\d+>", masked))) == len(MASKS)
        if text.strip():
            assert restore(masked, text) == text


def test_a_translation_of_masks_in_another_order_survives():
    rng = random.Random(0)
    for _ in range(500):
        source = "a " + " ".join(rng.choices(PIECES, k=rng.randint(1, 9))).strip()
        masks = re.findall(r"<ph\d+>", mask(source))
        # A text that is a tag alone has no placeholder: hence the "a".
        assert lost(source, restore("a " + " . ".join(rng.sample(masks, len(masks))), source)) == []


@pytest.mark.parametrize(
    ("source", "target", "masked", "masked_target"),
    [
        ("Open %1 in %2", "Ouvrir %2 dans %1", "Open <ph0> in <ph1>", "Ouvrir <ph1> dans <ph0>"),
        ("%1 of %1", "%1 / %1 (%2)", "<ph0> of <ph0>", "<ph0> / <ph0> (%2)"),  # what the source lacks stays text
        ('<a title="x">%1</a>', '<a title="y">%1</a>', "<ph0><ph1><ph2>", "<ph0><ph1><ph2>"),
        (" one\n two \n", "un\n deux", "one<ph0>two", "un<ph0>deux"),
        ("one\ntwo", "un\n\ndeux", "one<ph0>two", "un\n\ndeux"),
        ("Save as %1", "Enregistrer", "Save as <ph0>", "Enregistrer"),
        ("nothing", "rien %1", "nothing", "rien %1"),
        ("<ph7>", "<ph7>", "<ph0>", "<ph0>"),
        ("%1 <ph7>", "<ph7> %1", "<ph1> <ph0>", "<ph0> <ph1>"),  # what looks like a mask is masked, and first
        ("", "", "", ""),
    ],
)
def test_mask_target_has_the_masks_of_its_source(source, target, masked, masked_target):
    assert (mask(source), mask_target(target, source)) == (masked, masked_target)


def test_more_placeholders_than_masks_stay_text():
    source = " ".join(f"%{number}" for number in range(1, 21)) + " <ph5>"
    masked = mask(source)
    assert masked.startswith("<ph1> <ph2>") and masked.endswith("%16 %17 %18 %19 %20 <ph0>")
    assert restore(masked, source) == source


@pytest.mark.parametrize(
    ("hypothesis", "source", "text"),
    [
        ("Ouvrir <ph0>", "Open %1", "Ouvrir %1"),
        ("Ouvrir <ph1> <ph0>", "Open %1", "Ouvrir %1"),  # the source has one placeholder
        ("(<ph9>)", "Open %1", "()"),
        ("<ph0> <ph0> (<ph1>) <ph0>", "%1 or %1 in %2", "%1 %1 (%2)"),  # one that repeats itself
        ("", " Open ", ""),
        ("<ph3>", "Open", ""),
        ("Ouvrir", "\n Open ", "\n Ouvrir "),
    ],
)
def test_restore_removes_what_the_source_lacks(hypothesis, source, text):
    assert restore(hypothesis, source) == text


TEXTS = [text for pair in demo_pairs("train")[:600] for text in pair] + 40 * ["(file) {a} <b> </b> & File 5 % é\tb"]
LANGUAGES = {"source_lang": "en", "target_lang": "fr"}


FAST = ("marian", "t5", "m2m_100")  # one of each kind of tokenizer


@pytest.fixture(params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def plain(request, tmp_path):
    """The tokenizer of a published model of each family."""
    make_tokenizer(request.param, tmp_path / "vocabulary", TEXTS).save_pretrained(tmp_path / "plain")
    return load_tokenizer(str(tmp_path / "plain"), **LANGUAGES)


def test_every_family_carries_masks_and_spaces(plain, tmp_path):
    texts = ["Open the file", "Close  it (now)"]
    expected, size = [plain(text)["input_ids"] for text in texts], len(plain)
    assert not is_protected(plain)
    add_masks(copy.deepcopy(plain), tmp_path / "masked")
    first = load_tokenizer(str(tmp_path / "masked"), **LANGUAGES)
    first.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(str(tmp_path / "saved"), **LANGUAGES)  # as a checkpoint's
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(loaded) != tokenizer_fingerprint(plain)
    for tokenizer in (first, loaded, for_languages(loaded, "en", "fr")):
        assert is_protected(tokenizer)
        check_masks(tokenizer, tokenizer)
        assert [tokenizer(text)["input_ids"] for text in texts] == expected
        assert tokenizer.convert_tokens_to_ids(list(MASKS)) == list(range(size, size + len(MASKS)))
    # Letters, single spaces and all that is masked.
    sources = [" ".join(text.split()) for text in random_texts(100, ["a", "file", " ", "(", ")", *PIECES[6:18]], 10)]
    sources = [source for source in sources if source]
    encoded = [loaded(mask(source))["input_ids"] for source in sources]
    assert decode(loaded, [[0, *ids] for ids in encoded], sources) == sources


def test_a_trained_tokenizer_has_masks_within_its_vocabulary(tmp_path):
    train_tokenizer(TEXTS, vocab_size=240, output_dir=tmp_path / "marian", **LANGUAGES, is_protected=True)
    tokenizer = load_tokenizer(str(tmp_path / "marian"), **LANGUAGES)
    assert is_protected(tokenizer) and len(tokenizer) == 240
    assert set(MASKS) <= set(tokenizer.get_vocab()) and tokenizer.pad_token_id == 239
    check_masks(tokenizer, tokenizer)
    for source in random_texts(300, [piece for piece in PIECES if "<ph" not in piece]):
        if mask(source):
            ids = tokenizer(mask(source))["input_ids"]
            assert decode(tokenizer, [[0, *ids]], [source]) == [source]


def test_encode_rows_masks_both_sides(marian_tokenizer, tmp_path):
    from datasets import Dataset

    add_masks(copy.deepcopy(marian_tokenizer), tmp_path / "masked")
    tokenizer = load_tokenizer(str(tmp_path / "masked"), **LANGUAGES)
    rows = Dataset.from_dict({"source": ["Open the %1file\n%2 "], "target": ["Ouvrir %2 le %1"]})
    encoded = encode_rows(
        rows, tokenizer, max_source_length=32, max_target_length=32, source_prefix=None, num_workers=1
    )
    sources, targets = encoded.rows[0]["input_ids"], encoded.rows[0]["labels"]
    first = tokenizer.convert_tokens_to_ids(MASKS[0])
    assert [token for token in sources if token >= first] == [first, first + 1, first + 2]
    assert [token for token in targets if token >= first] == [first + 2, first]
    assert decode(tokenizer, [[0, *targets]], rows["source"][:]) == ["Ouvrir %2 le %1 "]


def test_decode_best_takes_the_first_candidate_that_survives(marian_tokenizer, tmp_path):
    add_masks(copy.deepcopy(marian_tokenizer), tmp_path / "masked")
    tokenizer = load_tokenizer(str(tmp_path / "masked"), **LANGUAGES)

    def candidates(*texts):
        return [[0, *tokenizer(text)["input_ids"]] for text in texts]

    found = decode_best(
        tokenizer,
        [candidates("le fichier", "fichier <ph0>", "<ph0>"), candidates("le", "la"), candidates("un", "deux")],
        ["file %1", "%1 %2", "one"],
    )
    assert found == ["fichier %1", "le", "un"]


def test_a_tokenizer_that_loses_masks_is_refused(marian_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"--protect: a MarianTokenizer does not keep the masks"):
        check_masks(marian_tokenizer, marian_tokenizer)


PAIRS = [
    ("Open %1", "Ouvrir %1"),
    ("Close %1 and %2", "Fermer %2 et %1"),
    ("<b>Delete</b> the file", "<b>Supprimer</b> le fichier"),
    ("Save\nthe file", "Enregistrer\nle fichier"),
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"en": en, "fr": fr}) + "\n" for en, fr in 4 * PAIRS))
    return str(path)


@pytest.mark.slow
def test_a_pretrained_model_learns_masks_and_keeps_them(pairs, model_path, new_run, runtime, tmp_path, capsys):
    flags = {
        "train_file": pairs, "validation_file": pairs, "model_name_or_path": str(model_path), "tokenizer_name": None,
        "max_train_steps": 60, "learning_rate": 5e-3, "num_warmup_steps": 4, "eval_steps": 1_000,
        "eval_on_start": False, "num_beams": 2, "val_max_target_length": 24,
    }  # fmt: skip
    run = new_run(**flags, protect="placeholders")
    assert "16 masks were added to the vocabulary" in capsys.readouterr().out
    rows = run.model.config.vocab_size
    assert len(run.tokenizer) == rows == run.model.get_input_embeddings().weight.shape[0] == 400 + len(MASKS)
    due = run.due
    run.due = lambda what: due(what) and (what != "save" or run.is_done)
    assert train(run) is None
    (line,) = [line for line in run.folder.metrics.lines() if "bleu" in line]
    assert (line["bleu"], line["survival"]) == (pytest.approx(100), 100)  # against the raw references

    # A model that has masks needs no flag, and copies what it has never seen.
    sources = ["Open {name}", "Close <i> and https://a.b/c ", '<a href="x">Delete</p> the file', " Save\n\nthe file"]
    expected = ["Ouvrir {name}", "Fermer https://a.b/c et <i> ", '<a href="x">Supprimer</p> le fichier']
    expected.append(" Enregistrer\n\nle fichier")
    final = run.folder.final_dir
    translator = Translator(str(final), runtime=runtime)
    assert translator(sources) == expected
    assert [candidates[0].lost for candidates in translator.translate(sources)] == [()] * 4
    engine = TransformersEngine.load(str(final), EngineOptions(), runtime)
    convert(engine.network, engine.tokenizer, "m", tmp_path / "export", quantization=None).save(tmp_path / "export")
    assert Translator(str(tmp_path / "export"), runtime=runtime)(sources) == expected

    again = new_run("again", **{**flags, "model_name_or_path": str(final), "lora_rank": 2})  # its masks are trained
    assert is_protected(again.tokenizer) and not again.folder.tokenizer_dir.exists()
    with pytest.raises(UserError, match="--protect"):
        new_run(**flags)


def test_search_surviving_forces_masks_that_no_beam_keeps(pairs, model_path, new_run, runtime):
    run = new_run(train_file=pairs, validation_file=pairs, model_name_or_path=str(model_path), tokenizer_name=None,
                  num_beams=2, protect="placeholders")  # fmt: skip
    run.model.final_logits_bias[0, run.tokenizer.eos_token_id] = 8.0  # it would end at once
    engine = TransformersEngine(run.model.eval(), run.tokenizer, asked=EngineOptions(), max_source_length=24)
    sources = ["Open %1 and {name}", "Save the file", " %1\n%2 %1"]
    ids, _ = encode_sources(run.tokenizer, sources, "", 24)
    lengths = np.array([len(row) for row in ids], dtype=np.int32)
    found = search_surviving(
        engine, as_encoded(ids), lengths, sources, runtime, SearchOptions(n_best=2, with_scores=True), max_tokens=100
    )
    assert [row[0].is_forced for row in found] == [True, False, True]
    for source, candidates in zip(sources, found, strict=True):
        texts = decode(run.tokenizer, [one.tokens.tolist() for one in candidates], [source] * 2)
        assert [lost(source, text) for text in texts] == [[], []]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"lora_rank": 2}, r"--protect: the masks are new to the model, and --lora_rank does not train its embeddings"),
        ({"freeze": ["embeddings"]}, r"--protect: .* --freeze does not train its embeddings"),
    ],
)
def test_masks_that_would_not_be_trained_are_refused(pairs, model_path, new_run, flags, problem):
    named = {"train_file": pairs, "model_name_or_path": str(model_path), "tokenizer_name": None}
    with pytest.raises(UserError, match=problem):
        new_run(**named, **flags, protect="placeholders")
