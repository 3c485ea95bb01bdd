"""Test export: CTranslate2 computes what transformers does for every family, and an export replaces its model."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import ctranslate2
import pytest
import sentencepiece
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    M2M100Tokenizer,
    MBartTokenizer,
    MT5Config,
    PLBartConfig,
    T5Config,
    UMT5Config,
)

from mtloop.errors import UserError
from mtloop.generation.conversion import convert, differences, search_of
from mtloop.generation.ctranslate2 import Search, read_export
from mtloop.generation.engine import EngineOptions, TransformersEngine, as_encoded
from mtloop.generation.generate import SearchOptions
from mtloop.model.generation_config import configure_generation
from mtloop.tokenization.loading import load_tokenizer, target_language_token
from mtloop.translate.translator import Translator
from tests.support.commands import command

translate = command("translate")
main = command("export")

LIKE_OTHERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "plbart", "m2m_100", "pegasus", "t5", "mt5")
]
FAMILIES = ("marian", "mbart", "t5 v1.1", "umt5", *LIKE_OTHERS)


@pytest.fixture(scope="module")
def configs(tiny_configs):
    """tiny_configs, and the relatives of T5; of two layers, so that what one hands to the next counts."""
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "decoder_start_token_id": 0}
    ids = {name: getattr(tiny_configs["t5"], name) for name in ("vocab_size", "pad_token_id", "eos_token_id")}
    size |= {**ids, "decoder_start_token_id": ids["pad_token_id"], "num_layers": 2}
    found = {
        **copy.deepcopy(tiny_configs),
        "t5": T5Config(**size),
        # As the checkpoints of v1.1 say it: transformers then does not scale the outputs.
        "t5 v1.1": T5Config(**size, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "mt5": MT5Config(**size),
        "umt5": UMT5Config(**size),
        "plbart": PLBartConfig(**{**tiny_configs["mbart"].to_dict(), "model_type": "plbart"}),
    }
    for name in ("marian", "bart", "plbart", "mbart", "m2m_100", "pegasus"):
        found[name].encoder_layers = found[name].decoder_layers = 2
    return found


def random_model(config):
    """A model of random weights, biases and norms included, whose outputs are far from uniform."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    return model.eval()


def exported(folder, target, runtime, *, quantization=None, **asked):
    engine = TransformersEngine.load(str(folder), EngineOptions(**asked), runtime)
    record = convert(engine.network, engine.tokenizer, str(folder), target, quantization=quantization)
    record.save(target)
    return target


@pytest.fixture
def sentences(sample_rows):
    return [sample_rows[number]["source"] for number in range(30)]


@pytest.fixture
def export(model_path, tmp_path, runtime):
    return exported(model_path, tmp_path / "export", runtime)


def both(folder, export, runtime, **options):
    """Two translators, of a model and of its export."""
    return [Translator(str(path), runtime=runtime, **options) for path in (folder, export)]


# The weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_convert_keeps_the_log_probabilities_of_each_family(
    configs, marian_tokenizer, tmp_path, family, encoded_sample
):
    network = random_model(configs[family])
    configure_generation(network, marian_tokenizer, num_beams=1, max_length=20, forced_bos_token_id=None)
    engine = SimpleNamespace(network=copy.deepcopy(network), tokenizer=marian_tokenizer)
    if family == "umt5" and not hasattr(network.config, "scale_decoder_outputs"):
        with pytest.raises(UserError, match="computes umt5 differently from CTranslate2; pip install -U"):
            convert(engine.network, engine.tokenizer, "m", tmp_path / "export", quantization=None)
        return
    convert(engine.network, engine.tokenizer, "m", tmp_path / "export", quantization=None)
    rows = encoded_sample.rows.select(range(8))
    tokens = marian_tokenizer.convert_ids_to_tokens(range(len(marian_tokenizer)))
    sources = [[tokens[number] for number in ids] for ids in rows["input_ids"]]
    targets = [[tokens[number] for number in ids[:-1]] for ids in rows["labels"]]  # it adds the end itself
    found = ctranslate2.Translator(str(tmp_path / "export"), intra_threads=1).score_batch(sources, targets)
    for row, scored in zip(rows, found, strict=True):
        labels = torch.tensor([row["labels"]])
        start = torch.tensor([[network.generation_config.decoder_start_token_id]])
        with torch.no_grad():
            logits = network(
                input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.cat([start, labels[:, :-1]], dim=1)
            ).logits
        expected = logits.log_softmax(dim=-1).gather(2, labels[:, :, None])[0, :, 0]
        assert expected.std() > 0.3  # no uniform distribution, which anything would give
        torch.testing.assert_close(torch.tensor(scored.log_probs), expected, atol=1e-3, rtol=1e-4)


def test_convert_refuses_another_family(configs, marian_tokenizer, runtime, tmp_path, model_path):
    engine = TransformersEngine.load(str(model_path), EngineOptions(), runtime)
    engine.network.config.model_type = "prophetnet"
    with pytest.raises(UserError, match="--model m: a model of type prophetnet cannot be converted .*marian"):
        convert(engine.network, engine.tokenizer, "m", tmp_path / "export", quantization=None)


@pytest.mark.slow
def test_convert_keeps_rows_without_a_token(tiny_model, model_path, marian_tokenizer, runtime, tmp_path, sentences):
    model = AutoModelForSeq2SeqLM.from_pretrained(model_path)
    model.resize_token_embeddings(len(marian_tokenizer) + 3)
    model.save_pretrained(tmp_path / "model")
    marian_tokenizer.save_pretrained(tmp_path / "model")
    target = exported(tmp_path / "model", tmp_path / "export", runtime)
    ours, theirs = both(tmp_path / "model", target, runtime, num_beams=2)
    assert theirs(sentences) == ours(sentences)


# The engine


@pytest.mark.parametrize("num_beams", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_export_translates_as_the_model(
    model_path, export, runtime, sentences, tiny_model, marian_tokenizer, num_beams
):
    # Tied to the outputs, the padding token's embedding has moved in training: the decoder does not start from zeros.
    assert tiny_model.get_input_embeddings().weight[marian_tokenizer.pad_token_id].abs().max() > 0.01
    ours, theirs = both(model_path, export, runtime, num_beams=num_beams, max_target_length=24)
    texts = [*sentences, "", sentences[0]]
    found = theirs.translate(texts)
    expected = ours.translate(texts)
    assert [one.text for (one,) in found] == [one.text for (one,) in expected]
    assert len({one.text for (one,) in found}) > 5 and found[-2][0].text == ""
    assert [one.is_cut for (one,) in found] == [one.is_cut for (one,) in expected]
    for (one,), (other,) in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=2e-2)  # the padding token is struck out before, or after


@pytest.mark.slow
def test_export_sorts_n_best_by_score(model_path, export, runtime, sentences):
    ours, theirs = both(model_path, export, runtime, num_beams=4, n_best=3, max_target_length=24)
    for found, expected in zip(theirs.translate(sentences[:8]), ours.translate(sentences[:8]), strict=True):
        scores = [candidate.score for candidate in found]
        assert len(found) == 3 and scores == sorted(scores, reverse=True)
        assert found[0].text == expected[0].text and scores[0] == pytest.approx(expected[0].score, abs=2e-2)


def test_export_is_independent_of_batches(export, runtime, sentences):
    expected = Translator(str(export), runtime=runtime)(sentences)
    assert Translator(str(export), runtime=runtime, max_tokens_per_batch=1)(sentences[::-1]) == expected[::-1]


@pytest.mark.parametrize(
    "max_target_length", [2, 8, pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)]
)
def test_export_applies_the_same_lengths(model_path, export, runtime, sentences, max_target_length):
    ours, theirs = both(
        model_path, export, runtime, num_beams=1, max_target_length=max_target_length, max_source_length=6
    )
    texts = [sentences[0], "Yes"]
    for (one,), (other,) in zip(theirs.translate(texts), ours.translate(texts), strict=True):
        assert (one.text, one.is_cut, one.is_source_cut) == (other.text, other.is_cut, other.is_source_cut)
    with pytest.raises(UserError, match="--max_source_length: this model has 512 positions .got 9999"):
        Translator(str(export), runtime=runtime, max_source_length=9999)


def test_open_engine_recognizes_an_export(model_path, export, runtime, tmp_path):
    with pytest.raises(
        UserError, match="^--engine: ctranslate2 needs an export of mtloop .got .* Make one with `mtloop export"
    ):
        Translator(str(model_path), engine="ctranslate2", runtime=runtime)
    with pytest.raises(
        UserError,
        match=r"^--model .*: transformers cannot run an export to CTranslate2. Give the model it was made from",
    ):
        Translator(str(export), engine="transformers", runtime=runtime)
    (export / "model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^--model .*: CTranslate2 4\.\S+ cannot load it \("):
        Translator(str(export), runtime=runtime)
    (export / "mtloop_export.json").write_text("{}")
    with pytest.raises(UserError, match="mtloop_export.json: format_version is missing. Export the model again"):
        Translator(str(export), runtime=runtime)


@pytest.mark.slow
def test_export_in_int8_translates(model_path, runtime, tmp_path, short_set):
    target = exported(model_path, tmp_path / "export", runtime, quantization="int8")
    assert (target / "model.bin").stat().st_size < (model_path / "model.safetensors").stat().st_size / 2
    sources, references = (short_set.rows[name][:16] for name in ("source", "target"))
    ours, theirs = both(model_path, target, runtime)
    known = [reference for reference, found in zip(references, ours(sources), strict=True) if found == reference]
    assert len(known) > 8 and len(set(theirs(sources)) & set(known)) >= len(known) - 2


# Languages


@pytest.fixture
def scored_tokens(marian_tokenizer):
    model = sentencepiece.SentencePieceProcessor(model_file=f"{marian_tokenizer.name_or_path}/source.spm")
    return [(model.id_to_piece(i), model.get_score(i)) for i in range(2, model.get_piece_size())]


@pytest.fixture
def mbart_path(configs, scored_tokens, tmp_path):
    tokenizer = MBartTokenizer(vocab=[("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *scored_tokens])
    return _multilingual(configs["mbart"], tokenizer, tmp_path)


@pytest.fixture
def m2m_path(configs, scored_tokens, marian_tokenizer, tmp_path):
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *(token for token, _ in scored_tokens)]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    spm = f"{marian_tokenizer.name_or_path}/source.spm"
    return _multilingual(configs["m2m_100"], M2M100Tokenizer(str(tmp_path / "vocab.json"), spm), tmp_path)


def _multilingual(config, tokenizer, tmp_path):
    config = type(config).from_dict(config.to_dict())
    languages = getattr(tokenizer, "lang_code_to_id", None) or {}
    config.vocab_size = max(len(tokenizer), *languages.values()) + 1 if languages else len(tokenizer)
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    config.decoder_start_token_id = tokenizer.eos_token_id
    if getattr(config, "forced_eos_token_id", None) is not None:
        config.forced_eos_token_id = tokenizer.eos_token_id
    random_model(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "languages"),
    [("mbart_path", ("en_XX", "fr_XX", "de_DE")), pytest.param("m2m_path", ("en", "fr", "de"), marks=pytest.mark.slow)],
)
def test_export_starts_with_the_target_language(request, runtime, tmp_path, sentences, family, languages):
    folder = request.getfixturevalue(family)
    source, target, other = languages
    export = exported(folder, tmp_path / "export", runtime, source_lang=source, target_lang=target)
    tokens = []
    for language in (target, other):
        options = {"source_lang": source, "target_lang": language, "num_beams": 2, "max_target_length": 12}
        ours, theirs = both(folder, export, runtime, **options)
        found = theirs(sentences[:20])
        assert found == ours(sentences[:20])
        token = target_language_token(theirs.loaded.tokenizer)
        (best,) = theirs.loaded.search(as_encoded([[token]]), [torch.tensor([0]).numpy()], runtime, SearchOptions())[0]
        assert token in best.tokens[:2]
        tokens.append(token)
    assert tokens[0] != tokens[1]


# Generation settings


def test_search_of_maps_generation_settings(tiny_model, marian_tokenizer, model_path, runtime):
    network = AutoModelForSeq2SeqLM.from_pretrained(model_path)
    given = {"min_length": 5, "length_penalty": 0.6, "no_repeat_ngram_size": 3, "early_stopping": True,
             "repetition_penalty": 1.2}  # fmt: skip
    for name, value in given.items():
        setattr(network.generation_config, name, value)
    configure_generation(network, marian_tokenizer, num_beams=4, max_length=30, forced_bos_token_id=None)
    pad, eos = marian_tokenizer.pad_token_id, marian_tokenizer.eos_token_id
    assert search_of(network, marian_tokenizer) == Search(
        num_beams=4, max_length=30, min_length=5, position_limit=512, decoder_start_id=pad, eos_ids=[eos],
        has_forced_end=True, bad_words=[[pad]], length_penalty=0.6, repetition_penalty=1.2, no_repeat_ngram_size=3,
        stops_early=True,
    )  # fmt: skip
    network.generation_config.suppress_tokens = [5]
    found = [line.split(":")[0] for line in differences(network)]
    assert found == ["suppress_tokens", "min_length", "repetition_penalty", "no_repeat_ngram_size"]


@pytest.mark.parametrize(
    ("name", "value", "num_beams"),
    [
        pytest.param("length_penalty", 0.2, 3, marks=pytest.mark.slow),
        pytest.param("early_stopping", True, 3, marks=pytest.mark.slow),
        # Of several beams others may win: test_search_of_maps_generation_settings.
        ("min_length", 15, 1),
        pytest.param("no_repeat_ngram_size", 1, 1, marks=pytest.mark.slow),
        pytest.param("repetition_penalty", 1.5, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_export_applies_settings_as_generate(model_path, runtime, tmp_path, sentences, name, value, num_beams):
    network = AutoModelForSeq2SeqLM.from_pretrained(model_path)
    network.generation_config.num_beams = num_beams
    setattr(network.generation_config, name, value)
    network.save_pretrained(tmp_path / "model")
    load_tokenizer(str(model_path), source_lang="en", target_lang="fr").save_pretrained(tmp_path / "model")
    ours, theirs = both(tmp_path / "model", exported(tmp_path / "model", tmp_path / "export", runtime), runtime)
    found = theirs(sentences[:12])
    assert found == ours(sentences[:12])
    if name != "early_stopping":
        assert found != Translator(str(model_path), num_beams=num_beams, runtime=runtime)(sentences[:12])


# The command


@pytest.fixture
def run_command(model_path, fresh_accelerate, capsys):
    """Run the command; return its status, standard output and error."""

    def run(*words):
        flags = ["--format", "ctranslate2", "--source_lang", "en", "--target_lang", "fr", "--cpu_threads", "1"]
        status = main([*flags, "--num_beams", "2", *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_export_reports_parity(run_command, model_path, rows_path, tmp_path):
    target = tmp_path / "new" / "export"
    words = ["--model", model_path, "-o", target, "--test_set", rows_path, "--max_samples", 20]
    status, out, err = run_command(*words)
    assert status == 0, err
    record = read_export(target)
    (parity,) = record.parity
    assert (record.model, record.quantization, record.run_id) == (str(model_path), None, None)
    assert (parity["test_set"], parity["num_sentences"], parity["num_beams"]) == ("news", 20, 2)
    assert parity["num_identical"] == 20 and parity["differing"] == []
    assert parity["generate"]["bleu"] == parity["ctranslate2"]["bleu"]
    assert parity["factor"] == parity["ctranslate2"]["sentences_per_s"] / parity["generate"]["sentences_per_s"]
    told = f"20 of 20 outputs identical (100.0 %); ctranslate2 is {parity['factor']:.1f} times as fast as generate"
    assert told in out
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    status, out, err = run_command(*words[:4], "--quantization", "int8", "--no_parity")
    assert status == 0 and read_export(target).quantization == "int8" and "identical" not in out
    status, out, err = run_command(*words[:4])
    assert status == 0 and f"not compared: {model_path} is not a run folder. Give rows" in out
    assert translate(["--text", "Yes", "--engine", "ctranslate2", "--model", str(target), "--cpu_threads", "1"]) == 0


@pytest.mark.slow
def test_export_ignores_the_length_ratio_of_the_run(run_command, model_path, rows_path, tmp_path):
    shutil.copytree(model_path, tmp_path / "run" / "final")
    config = "train_file: [a.tsv]\nsource_lang: en\ntarget_lang: fr\ntrain_tokenizer: true\nmodel_size: tiny\n"
    (tmp_path / "run" / "config.yaml").write_text(f"{config}max_length_ratio: 3.0\n")
    words = ("--model", tmp_path / "run", "-o", tmp_path / "export", "--test_set", rows_path)
    status, out, err = run_command(*words)
    assert status == 0 and "the run's value 3.0 is ignored" in out, err


@pytest.mark.slow
def test_open_engine_refuses_a_corrupt_export_in_one_line(export, runtime):
    (export / "tokenizer" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="^--model .*export: tokenizer/config.json is corrupt .*Export the model again"):
        Translator(str(export), runtime=runtime)


@pytest.mark.slow
def test_export_reports_differences(monkeypatch, run_command, model_path, rows_path, tmp_path):
    from mtloop.cli.commands import export as command

    evaluated = command.evaluate_warm

    def alter(scored, test_set, metrics):
        found = evaluated(scored, test_set, metrics)
        is_export = not isinstance(scored.engine, TransformersEngine)
        return replace(found, hypotheses=["x", *found.hypotheses[1:]]) if is_export else found

    monkeypatch.setattr(command, "evaluate_warm", alter)
    status, out, _ = run_command("--model", model_path, "-o", tmp_path / "export", "--test_set", rows_path)
    assert status == 0 and "24 of 25 outputs identical (96.0 %)" in out
    (report,) = read_export(tmp_path / "export").parity
    (row,) = report["differing"]
    assert (row["index"], row["ctranslate2"]) == (0, "x") and row["generate"] not in ("", "x")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-o", "{dir}"], "-o: the folder exists and is not an export (got {dir}). Give a new folder."),
        (["-o", "{rows}"], "-o {rows}: cannot be written ({rows} is a file). Give another place."),
        (["-o", "{rows}/x"], "-o {rows}/x: cannot be written ("),
        (
            ["-o", "{dir}/x", "--no_parity", "--test_set", "{rows}"],
            "--no_parity, --test_set: they exclude each other. Give one of them.",
        ),
        (
            ["-o", "{dir}/x", "--max_samples", "0"],
            "--max_samples: expected a whole number from 1 to 1000000000 (got 0).",
        ),
        (["-o", "{dir}/x", "--quantization", "int4"], "--quantization: invalid choice: 'int4'"),
        (["-o", "{dir}/x", "--model", "{dir}/nowhere"], "--model '{dir}/nowhere': there is no such folder"),
    ],
)
def test_export_reports_mistakes_in_one_line(run_command, model_path, rows_path, tmp_path, words, reason):
    places = {"rows": rows_path, "dir": tmp_path}
    status, _, err = run_command("--model", model_path, *[word.format(**places) for word in words])
    (line,) = [line for line in err.splitlines() if line.startswith("mtloop: ")]
    assert status == 2 and line.startswith(f"mtloop: error: {reason.format(**places)}"), line
    assert [path.name for path in tmp_path.iterdir()] == ["news.jsonl"]


def test_export_without_ctranslate2_names_the_package(monkeypatch, run_command, model_path, export, tmp_path):
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    status, _, err = run_command("--model", model_path, "-o", tmp_path / "out")
    assert status == 2 and "ctranslate2 is not installed" in err and "`pip install " in err
    assert translate(["--text", "Yes", "--model", str(export)]) == 2
