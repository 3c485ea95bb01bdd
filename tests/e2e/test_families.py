"""Test every family from a published model's folder to a translation, with the real tokenizer, loop and export."""

import json

import pytest

from mtloop import Translator
from mtloop.errors import UserError
from mtloop.tokenization.loading import load_tokenizer
from mtloop.trainer.loop import train
from tests.support.families import FAMILIES, LANGUAGES, make_family
from tests.support.launch import PYTHON
from tests.support.launch import run as run_program

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_PAIRS = 16
# Enough to know a dozen short pairs by heart on any processor: every pair is in every update and the rate ends at 0, so
# that the model is at rest when it is saved. The loss is then 0.01 to 0.03 a token; 0.1 still gives 98 BLEU.
BY_HEART = {
    "max_train_steps": 200,
    "learning_rate": 4e-3,
    "num_warmup_steps": 30,
    "lr_scheduler_type": "linear",
    "adam_beta2": 0.98,
    "eval_steps": 1000,  # at the end alone
    "eval_on_start": False,
}
T5_BY_HEART = {"max_train_steps": 300, "learning_rate": 2e-3}  # its logits are scaled down
# What a stranger does with the folder: nothing of mtloop, no language, no option. Prints token ids and texts.
PLAIN = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
folder, prefix, sources = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
ids, texts = [], []
for source in sources:
    output = model.generate(**tokenizer([prefix + source], return_tensors="pt"))[0].tolist()
    ids.append(output)
    texts.append(tokenizer.decode(output, skip_special_tokens=True))
print(json.dumps([[tokenizer.convert_ids_to_tokens(row) for row in ids], texts]))
"""


@pytest.fixture(scope="module")
def texts(demo_sample):
    """Return both sides of 50 short pairs, three times: what tokenizers are trained on."""
    return [text for pair in short_pairs(demo_sample)[:50] for text in pair] * 3


@pytest.fixture(scope="module")
def pairs(demo_sample):
    return short_pairs(demo_sample)[:NUM_PAIRS]


def short_pairs(sample):
    """Return the pairs with short sources; no text has two translations."""
    by_source = {source: target for source, target in sample if len(source) < 32}
    by_target = {target: source for source, target in by_source.items()}
    return [(source, target) for target, source in by_target.items()]


@pytest.fixture(scope="module")
def pairs_file(pairs, tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"en": source, "fr": target}) + "\n" for source, target in pairs))
    return path


# What the others have in common with one of these is all that the default tests try.
BY_DEFAULT = ("marian", "t5", "mbart", "m2m_100")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.full]) for name in FAMILIES],
)
def family(request, texts, tmp_path_factory):
    """Name and folder of a family's model."""
    return request.param, make_family(request.param, tmp_path_factory.mktemp("family"), texts)


def learn(run):
    """Train; save at the end alone: an epoch is one or two updates here, and a save takes as long as they do."""
    due = run.due
    run.due = lambda what: due(what) and (what != "save" or run.is_done)
    return train(run)


def test_a_family_learns_is_saved_and_translates_elsewhere(family, pairs, pairs_file, new_run, runtime):
    name, folder = family
    expected = FAMILIES[name]
    run = new_run(
        train_file=pairs_file,
        validation_file=pairs_file,
        model_name_or_path=str(folder),
        model_size=None,
        tokenizer_name=None,
        sentences_per_update=NUM_PAIRS,
        **{**BY_HEART, **(T5_BY_HEART if name == "madlad" or name.endswith("t5") else {})},
        num_beams=2,
        val_max_target_length=64,
        max_source_length=100,
        max_target_length=64,
    )
    assert run.config.data.source_prefix == expected.prefix
    assert_encoded_as_the_class_does(run, folder, pairs, expected.prefix)
    assert learn(run) is None
    lines = [json.loads(line) for line in run.folder.metrics.path.read_text().splitlines()]
    print(f"{name}: BLEU {lines[-1]['bleu']:.1f} of {NUM_PAIRS} pairs by heart")
    assert lines[-1]["bleu"] > 90

    # The same weights, languages and prefix for whoever loads the folder, with mtloop or without.
    sources = [source for source, _ in pairs[:6]]
    final = str(run.folder.final_dir)
    done = run_program([PYTHON, "-c", PLAIN, final, expected.prefix or "", json.dumps(sources)])
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, texts = json.loads(done.stdout)
    for row in tokens:
        assert row[0] == expected.start_token
        assert expected.first_token in (None, row[1])
    assert Translator(final, runtime=runtime)(sources) == texts


@pytest.mark.parametrize(
    "name", ["m2m_100", *(pytest.param(name, marks=pytest.mark.full) for name in ("mbart", "mt5", "scratch"))]
)
def test_both_directions_in_one_run(
    name, texts, pairs_file, new_run, runtime, marian_config, marian_tokenizer, tmp_path
):
    """What a translation begins with differs between the pairs: in the decoder's start, after it, and not at all."""
    flags = {"tokenizer_name": None, **BY_HEART, **(T5_BY_HEART if name == "mt5" else {})}
    if name == "scratch":
        size = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
        marian_config(marian_tokenizer, **size).save_pretrained(tmp_path / "config")
        flags |= {"config_name": str(tmp_path / "config"), "train_tokenizer": True, "vocab_size": 120}
    else:
        flags |= {"model_name_or_path": str(make_family(name, tmp_path, texts))}
    run = new_run(
        **flags,
        train_file=pairs_file,
        validation_file=pairs_file,
        source_lang=None,
        target_lang=None,
        pairs="en-fr,fr-en",
        max_train_samples=12,
        max_eval_samples=12,
        sentences_per_update=24,
        val_max_target_length=64,
    )
    assert len(run.loader.encoded) == 24 and run.valid.rows["source"][:12] == run.valid.rows["target"][12:]
    assert learn(run) is None
    found = json.loads(run.folder.metrics.path.read_text().splitlines()[-1])
    print(f"{name}: BLEU {found['bleu_en-fr']:.1f} and {found['bleu_fr-en']:.1f} of 12 pairs by heart")
    assert found["bleu_en-fr"] > 90 and found["bleu_fr-en"] > 90
    assert found["bleu"] == (found["bleu_en-fr"] + found["bleu_fr-en"]) / 2
    assert 0 <= found["bleu_fr-en_ci"] < 20 and "bleu_ci" not in found

    # The report of the run is what its final/ translates, in either direction; languages are told in any code.
    stored = [
        json.loads(line)
        for line in (run.folder.hypotheses_dir / f"step_{run.state.step}.jsonl").read_text().splitlines()
    ]
    assert [line["pair"] for line in stored] == ["en-fr"] * 12 + ["fr-en"] * 12
    translator = Translator(str(run.folder.final_dir), source_lang="en", target_lang="fra", runtime=runtime)
    for rows, languages in ((stored[:12], ("eng", "French")), (stored[12:], ("fr_FR", "en"))):
        translator.set_languages(*languages)
        assert translator([row["source"] for row in rows]) == [row["hypothesis"] for row in rows]


def assert_encoded_as_the_class_does(run, folder, pairs, prefix):
    """The rows that are trained on are what the class itself makes of a pair, and no token is unknown."""
    plain = load_tokenizer(str(folder), source_lang=LANGUAGES[0], target_lang=LANGUAGES[1])
    rows = run.loader.encoded
    for row, (source, target) in zip(rows, pairs, strict=True):
        own = plain((prefix or "") + source, text_target=target)
        assert row["input_ids"] == own["input_ids"] and row["labels"] == own["labels"]
        assert plain.unk_token_id not in row["input_ids"][len(plain(prefix or "")["input_ids"]) :] + row["labels"]
        assert plain.decode(row["labels"], skip_special_tokens=True).strip() == target.strip()
    if prefix and prefix.startswith("<2"):
        assert plain.convert_tokens_to_ids(prefix.strip()) in rows[0]["input_ids"][:2]
    if prefix and prefix.startswith(">>"):
        assert plain.convert_ids_to_tokens(rows[0]["input_ids"][0]) == prefix.strip()


def test_translator_needs_to_be_told_the_language_of_a_multilingual_model(texts, runtime, tmp_path):
    folder = str(make_family("marian-multilingual", tmp_path, texts))
    with pytest.raises(UserError, match="--target_lang: not given, .*>>deu<<, >>fra<<"):
        Translator(folder, runtime=runtime)
    with pytest.raises(UserError, match="--target_lang: not a language of this tokenizer .got 'es'"):
        Translator(folder, target_lang="es", runtime=runtime)
    assert Translator(folder, target_lang="French", runtime=runtime).source_prefix == ">>fra<< "
    assert Translator(folder, source_prefix="", runtime=runtime).source_prefix == ""
    madlad = str(make_family("madlad", tmp_path, texts))
    with pytest.raises(UserError, match="--target_lang: not given, .*<2de>, <2en>, <2fr>"):
        Translator(madlad, runtime=runtime)
    with pytest.raises(UserError, match="--target_lang: not a language .*.got 'es'.. Give one of <2de>"):
        Translator(madlad, source_lang="en", target_lang="es", runtime=runtime)
    translator = Translator(madlad, target_lang="fra_Latn", runtime=runtime)
    assert translator.source_prefix == "<2fr> "
    translator.set_languages("fr", "German")
    assert translator.source_prefix == "<2de> "
    with pytest.raises(UserError, match="--target_lang: not given"):
        Translator(str(make_family("nllb", tmp_path, texts)), source_lang="en", runtime=runtime)
