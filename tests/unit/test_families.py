"""Test families: each row of the table agrees with the classes of transformers."""

import pytest
import torch
from ctranslate2.converters import transformers as loaders
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, PLBartConfig, PLBartTokenizer

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.config.model import TuningConfig
from mtloop.model.adapters import choose_trained
from mtloop.model.families import FAMILIES, UNLISTED, family_of
from mtloop.model.generation_config import position_limit, shift_right
from mtloop.model.loading import load_model
from mtloop.model.loss import batch_loss_sum
from mtloop.tokenization.training import train_tokenizer
from mtloop.trainer.loop import train
from mtloop.translate.translator import Translator

every_family = pytest.mark.parametrize("name", FAMILIES)


def tiny_model(name, tokenizer=None):
    """Return a model with one layer a side and random weights."""
    pad, eos = (0, 1) if tokenizer is None else (tokenizer.pad_token_id, tokenizer.eos_token_id)
    rows = 24 if tokenizer is None else len(tokenizer)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "hidden_size": 16}
    for side in ("encoder", "decoder"):
        size |= {f"{side}_layers": 1, f"{side}_ffn_dim": 32, f"{side}_attention_heads": 2}
    if name == "prophetnet":
        size = {"hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1, "ngram": 1}
        size |= {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    if name == "fsmt":
        size |= {"langs": ["en", "fr"], "src_vocab_size": rows, "tgt_vocab_size": rows}
    config = AutoConfig.for_model(
        name, **size, vocab_size=rows, pad_token_id=pad, eos_token_id=eos, bos_token_id=eos, decoder_start_token_id=eos
    )
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(config).eval()


@every_family
def test_shift_right_follows_the_row(name):
    model = tiny_model(name)
    labels = torch.tensor([[5, 6, 7, 1], [8, 9, IGNORE_INDEX, IGNORE_INDEX]])
    shifted = shift_right(model, labels)
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        assert torch.equal(shifted, model.prepare_decoder_input_ids_from_labels(labels=labels.clone()))
    else:  # M2M100 shifts in its forward
        inputs = {"input_ids": labels.clamp(min=0)}
        own = model(**inputs, labels=labels).logits
        assert torch.equal(model(**inputs, decoder_input_ids=shifted).logits, own)
    fillers = torch.full_like(labels, IGNORE_INDEX)
    assert shift_right(model, fillers).min() >= 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "fsmt"])  # cannot list its embeddings
@pytest.mark.slow
def test_choose_trained_finds_the_attention_of_the_row(name):
    model = tiny_model(name)
    (line,) = choose_trained(model, TuningConfig(lora_rank=2, lora_alpha=2), name="m")
    assert line.endswith(", ".join(FAMILIES[name].attention))


@every_family
def test_batch_loss_sum_is_the_loss_of_the_model(name):
    model = tiny_model(name)
    labels = torch.tensor([[5, 6, 7, 1], [8, 9, IGNORE_INDEX, IGNORE_INDEX]])
    inputs = {"input_ids": labels.clamp(min=2), "attention_mask": torch.ones_like(labels)}
    positions = (labels.flatten() != IGNORE_INDEX).nonzero().flatten()
    projected = batch_loss_sum(model, {**inputs, "labels": labels, "target_positions": positions})
    logits = model(**inputs, decoder_input_ids=shift_right(model, labels), use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert projected.item() == pytest.approx(expected.item(), rel=1e-5)


@every_family
@pytest.mark.slow
def test_load_model_freezes_tables_of_sines_only(name, marian_tokenizer, tmp_path):
    tiny_model(name, marian_tokenizer).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None)
    sines = {
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and "Sinusoidal" in type(module).__name__
    }
    frozen = {weight_name for weight_name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {f"{module_name}.weight" for module_name in sines}


@every_family
def test_positions_and_loader_exist(name):
    model, family = tiny_model(name), FAMILIES[name]
    has_table = getattr(model.config, "max_position_embeddings", None) is not None
    assert (position_limit(model.config) is not None) == (family.positions == "table" and has_table)
    assert has_table or family.positions == "relative"
    if family.ctranslate2_loader is not None:
        assert issubclass(getattr(loaders, family.ctranslate2_loader), loaders.ModelLoader)


def test_family_of_an_unlisted_type_is_generic():
    model = tiny_model("bart")
    model.config.model_type = "blenderbot"
    assert family_of(model.config) is UNLISTED
    (line,) = choose_trained(model, TuningConfig(lora_rank=2, lora_alpha=2), name="m")
    assert line.endswith("q_proj, v_proj")


# PLBart, which its row alone adds


FUNCTIONS = [
    (f"def {name}(a, b): return a {sign} b", f"Return a {word} b.")
    for name, sign, word in (
        ("add", "+", "plus"), ("sub", "-", "minus"), ("mul", "*", "times"), ("div", "/", "over"),
        ("mod", "%", "modulo"), ("pow", "**", "to the power of"), ("both", "and", "and"), ("any", "or", "or"),
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def plbart(tmp_path_factory):
    """Return a folder with a tiny PLBart and its tokenizer, and a file of pairs of Python and English."""
    folder = tmp_path_factory.mktemp("plbart")
    texts = [text for pair in FUNCTIONS for text in pair] * 4
    train_tokenizer(texts, vocab_size=48, output_dir=folder / "marian", source_lang=None, target_lang=None)
    PLBartTokenizer(str(folder / "marian" / "source.spm")).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    size = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 64))}
    size |= {"d_model": 32, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 128}
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(PLBartConfig(vocab_size=len(tokenizer), **ids, **size))
    model.save_pretrained(folder / "model")
    rows = [("__python__", "__en_XX__"), *FUNCTIONS]
    (folder / "pairs.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in rows))
    return folder


@pytest.mark.parametrize("lora", [{}, pytest.param({"lora_rank": 2}, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_plbart_trains_and_translates_as_plain_generate_does(plbart, new_run, runtime, lora):
    run = new_run(
        train_file=plbart / "pairs.tsv",
        validation_file=plbart / "pairs.tsv",
        source_lang="__python__",
        target_lang="__en_XX__",
        model_name_or_path=str(plbart / "model"),
        tokenizer_name=None,
        sentences_per_update=8,
        max_train_steps=80,
        learning_rate=1e-2,
        num_warmup_steps=4,
        eval_steps=1000,  # at the end alone
        eval_on_start=False,
        num_beams=3,
        val_max_target_length=24,
        **lora,
    )
    num_lora = sum("lora_" in name for name, weight in run.model.named_parameters() if weight.requires_grad)
    assert num_lora == (12 if lora else 0)  # A and B of query and value in 3 attentions
    inputs = run.tokenizer([FUNCTIONS[0][0]], text_target=[FUNCTIONS[0][1]], return_tensors="pt")
    own = run.model.eval()(**inputs).loss.item() * inputs["labels"].shape[1]
    assert batch_loss_sum(run.model, inputs).item() == pytest.approx(own, rel=1e-5)
    due = run.due
    run.due = lambda what: due(what) and (what != "save" or run.is_done)  # an epoch is one update here
    assert train(run) is None
    assert (
        batch_loss_sum(run.model.eval(), inputs).item() < (0.99 if lora else 0.5) * own
    )  # an adapter alone moves random weights little

    final = run.folder.final_dir
    tokenizer, model = AutoTokenizer.from_pretrained(final), AutoModelForSeq2SeqLM.from_pretrained(final)
    sources, expected = [source for source, _ in FUNCTIONS], []
    for source in sources:
        found = model.generate(**tokenizer([source], return_tensors="pt"))[0]
        assert found[0] == tokenizer.lang_code_to_id["__en_XX__"]
        expected.append(tokenizer.decode(found, skip_special_tokens=True))
    assert Translator(str(final), runtime=runtime)(sources) == expected
