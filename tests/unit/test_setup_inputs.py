"""Refuse what can be refused before the rows of a run are read."""

import pytest
from transformers import BertConfig

from mtloop.errors import UserError


@pytest.fixture
def no_rows(monkeypatch):
    """Fail when rows are read."""
    monkeypatch.setattr("mtloop.trainer.setup_inputs.load_corpus", lambda *_, **__: pytest.fail("rows were read"))


@pytest.fixture
def bert(marian_tokenizer, tmp_path):
    """A folder with the config of a model that does not translate."""
    BertConfig(vocab_size=len(marian_tokenizer)).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (
            {"model_name_or_path": "no/such-model", "tokenizer_name": None},
            "--model_name_or_path 'no/such-model': no such",
        ),
        ({"model_name_or_path": "no/such-model"}, "--model_name_or_path no/such-model: cannot be loaded"),
        (
            {"tokenizer_name": "no/such-model"},
            "--tokenizer_name 'no/such-model': no such folder",
        ),
        ({"config_name": "no/such-model"}, "--config_name no/such-model: cannot be loaded"),
        (
            {"config_name": "no/such-model", "tokenizer_name": None, "train_tokenizer": True},
            "--config_name no/such-model: cannot be loaded",
        ),
        ({"max_source_length": 2000}, "--max_source_length: this model has 512 positions"),
        ({"max_target_length": 2000}, "--max_target_length: this model has 512 positions"),
        (
            {"source_lang": None, "target_lang": None, "pairs": "en-fr,fr-en"},
            "--pairs en-fr,fr-en: this marian model has one",
        ),
    ],
)
def test_a_wrong_model_is_refused_before_the_rows_are_read(new_run, no_rows, flags, problem):
    with pytest.raises(UserError) as caught:
        new_run(**flags)
    assert str(caught.value).startswith(problem) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["model_name_or_path", "config_name"])
def test_a_model_that_does_not_translate_is_refused_before_the_rows_are_read(new_run, no_rows, bert, flag):
    with pytest.raises(UserError, match=rf"^--{flag} .*bert: not an encoder-decoder \(got a bert model\)\. Give a"):
        new_run(**{flag: bert})


def test_an_engine_without_the_model_is_refused_before_the_rows_are_read(new_run, no_rows, monkeypatch):
    monkeypatch.setattr("mtloop.generation.conversion.refusal", lambda config: f"a {config.model_type} model")
    with pytest.raises(UserError, match="^--eval_engine ctranslate2: a marian model. Leave out --eval_engine"):
        new_run(eval_engine="ctranslate2")


@pytest.mark.slow
def test_an_unknown_language_is_refused_before_the_rows_are_read(new_run, no_rows, family_folder):
    flags = {"model_name_or_path": family_folder, "tokenizer_name": None, "target_lang": "tlh"}
    with pytest.raises(UserError, match="^--target_lang: not a language of this tokenizer"):
        new_run(**flags)


@pytest.fixture(scope="module")
def family_folder(demo_sample, tmp_path_factory):
    """An mBART of random weights, whose tokenizer knows its languages."""
    from tests.support.families import make_family

    texts = [text for pair in demo_sample for text in pair]
    return str(make_family("mbart", tmp_path_factory.mktemp("families"), texts))
