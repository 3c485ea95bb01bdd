"""Test generation.trial: what cannot compute a loss or translate is refused, and what can stays as it is."""

import json
import random
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, BartConfig, ProphetNetConfig

from mtloop.errors import UserError
from mtloop.generation.engine import EngineOptions, TransformersEngine
from mtloop.generation.trial import try_model
from mtloop.model.generation_config import configure_generation
from mtloop.runtime.ranks import Runtime

FLAG = "--model_name_or_path m"


def ready(config, tokenizer, **options):
    """Build a model of the config, and configure its generation with options of generation_config.json."""
    model = AutoModelForSeq2SeqLM.from_config(config)
    for name, value in options.items():
        setattr(model.generation_config, name, value)
    configure_generation(model, tokenizer, num_beams=2, max_length=16, forced_bos_token_id=None)
    return model


@pytest.mark.parametrize("family", ["marian", "bart", "mbart", "m2m_100", "pegasus", "t5"])
def test_try_model_changes_nothing(tiny_configs, marian_tokenizer, runtime, family):
    model = ready(tiny_configs[family], marian_tokenizer)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings, random = model.generation_config.to_dict(), torch.get_rng_state()
    try_model(model, marian_tokenizer, runtime, flag=FLAG)
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert model.generation_config.to_dict() == settings
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
def test_try_model_refuses_a_model_that_cannot_search(marian_tokenizer, runtime):
    """With a cache, transformers 5.24 counts ProphetNet's positions from 0, which holds for a padding token 0 only."""
    ids = {"pad_token_id": marian_tokenizer.pad_token_id, "eos_token_id": 0, "decoder_start_token_id": 0}
    size = {"hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "ngram": 1}
    size |= {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    model = ready(ProphetNetConfig(vocab_size=len(marian_tokenizer), **ids, **size), marian_tokenizer)
    with pytest.raises(UserError) as caught:
        try_model(model, marian_tokenizer, runtime, flag=FLAG)
    message = str(caught.value)
    assert message.startswith(f"{FLAG}: a ProphetNetForConditionalGeneration that fails when generating")
    assert "position_ids" in message and "\n" not in message


@pytest.mark.parametrize(
    "options",
    [
        {"forced_bos_token_id": 4_000},
        {"bad_words_ids": [5]},
        {"no_repeat_ngram_size": "two"},
        {"sequence_bias": {"a": 1.0}},
        {"length_penalty": "long"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_try_model_refuses_options_that_generate_refuses(tiny_configs, marian_tokenizer, runtime, options):
    model = ready(tiny_configs["bart"], marian_tokenizer, **options)
    with pytest.raises(UserError) as caught:
        try_model(model, marian_tokenizer, runtime, flag=FLAG)
    assert str(caught.value).startswith(f"{FLAG}: a BartForConditionalGeneration that fails when generating")
    assert "generation_config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"decoder_start_token_id": 4_000}, {"attention_dropout": -1.0}], ids=str)
def test_try_model_refuses_a_config_that_cannot_be_trained(tiny_configs, marian_tokenizer, runtime, wrong):
    config = BartConfig.from_dict({**tiny_configs["bart"].to_dict(), **wrong})
    model = ready(config, marian_tokenizer)
    with pytest.raises(UserError, match=f"{FLAG}: a BartForConditionalGeneration that fails when computing the loss"):
        try_model(model, marian_tokenizer, runtime, flag=FLAG)


def test_try_model_does_nothing_on_xla(tiny_configs, marian_tokenizer):
    """Each new shape would be a compilation."""
    model = ready(tiny_configs["marian"], marian_tokenizer)
    model.forward = None
    runtime = cast(Runtime, SimpleNamespace(is_xla=True, device=torch.device("xla")))
    try_model(model, marian_tokenizer, runtime, flag=FLAG)


VALUES = ("x", -1, 0, None, [1], {}, {"a": 1}, 1e300, True, [[5]], "1")
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "vocab.json",
    "source.spm",
    "model.safetensors",
)


@pytest.mark.parametrize(
    "num_mutations", [pytest.param(15, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.full)]
)
@pytest.mark.timeout(900)
def test_a_mutated_model_is_loaded_or_refused_in_one_line(
    tiny_configs, marian_tokenizer, runtime, tmp_path, num_mutations
):
    """A value of another type in a JSON file, or other bytes in any file; nothing but a UserError is raised."""
    rng, folder, counts = random.Random(0), tmp_path / "m", Counter[bool]()
    ready(tiny_configs["marian"], marian_tokenizer).save_pretrained(folder)
    marian_tokenizer.save_pretrained(folder)
    saved = {name: (folder / name).read_bytes() for name in FILES}
    for number in range(num_mutations):
        name = rng.choice(FILES[:3] if number % 3 else FILES)
        content = saved[name]
        if name.endswith("config.json") and rng.random() < 0.8:
            options = json.loads(content)
            key = rng.choice([*options, "num_beams", "length_penalty", "bad_words_ids", "task_specific_params"])
            content = json.dumps({**options, key: rng.choice(VALUES)}).encode()
        else:
            start = rng.randrange(len(content))
            content = rng.choice([content[:start], b"", b"{}", b"[1]", content[:start] + b"\xff\x00" + content[start:]])
        (folder / name).write_bytes(content)
        try:
            engine = TransformersEngine.load(str(folder), EngineOptions(max_target_length=8), runtime)
            engine.network.save_pretrained(tmp_path / "saved")
            is_loaded = True
        except UserError as error:
            assert "\n" not in str(error), str(error)
            is_loaded = False
        except Exception as error:
            raise AssertionError(f"mutation {number} of {name}: {content[:500]!r}") from error
        counts[is_loaded] += 1
        (folder / name).write_bytes(saved[name])
    assert min(counts[True], counts[False]) > 0
