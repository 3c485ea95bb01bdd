"""Test model: tiny models of six families are loaded, built, checked against their tokenizer, and generate."""

import copy
import json
import math

import pytest
import sentencepiece
import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    M2M100Tokenizer,
    MarianConfig,
    MBart50Tokenizer,
    MBartConfig,
    MBartTokenizer,
    T5Config,
    T5EncoderModel,
)

from mtloop.batching.loader import IGNORE_INDEX
from mtloop.config.model import ModelConfig, split_revision
from mtloop.errors import UserError
from mtloop.generation.trial import try_model
from mtloop.model.generation_config import check_positions, configure_generation, position_limit, shift_right
from mtloop.model.loading import MODEL_SIZES, build_model, load_model
from mtloop.model.loss import batch_loss_sum, token_loss_sum
from mtloop.model.static_shapes import additive_mask
from mtloop.tokenization.loading import load_tokenizer, target_language_token
from mtloop.trainer.setup import describe_model

# Bart, Pegasus and M2M100 are built and started as MBart and Marian are.
LIKE_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("m2m_100", "bart", "pegasus")]
FAMILIES = ["marian", "t5", "mbart", *LIKE_OTHERS]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these tiny models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model_dirs(tiny_configs, tmp_path_factory):
    """A folder with random weights of each family; layers are dropped and dropout is high wherever a family has it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for family, config in tiny_configs.items():
        config = type(config).from_dict(config.to_dict())
        for name in ("dropout", "attention_dropout", "dropout_rate", "encoder_layerdrop", "decoder_layerdrop"):
            if hasattr(config, name):
                setattr(config, name, 0.5)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder / family)
    return {family: folder / family for family in tiny_configs}


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def random_batch(tokenizer):
    """Three rows of tokens that end with eos, of target lengths 9, 5 and 2."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, 390, (3, 7), generator=generator)
    labels = torch.randint(2, 390, (3, 9), generator=generator)
    for row, length in enumerate((9, 5, 2)):
        labels[row, length - 1] = tokenizer.eos_token_id
        labels[row, length:] = IGNORE_INDEX
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, labels


LOADED = {}


def load(model_dirs, family, tokenizer, **options):
    """Return a copy of the model as it was loaded with these options: loading takes ten times as long."""
    key = (model_dirs[family], len(tokenizer), *options.items())
    if key not in LOADED:
        LOADED[key] = load_model(str(model_dirs[family]), tokenizer, **{"dropout": None, **options})
    return copy.deepcopy(LOADED[key])


def assert_one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# The decoder's input


@every_family
def test_shift_right_equals_the_forward_of_the_model(model_dirs, marian_tokenizer, family):
    model = load(model_dirs, family, marian_tokenizer).eval()
    inputs, labels = random_batch(marian_tokenizer)
    decoder_input_ids = shift_right(model, labels)
    expected = model(**inputs, labels=labels)
    ours = model(**inputs, decoder_input_ids=decoder_input_ids)
    assert torch.equal(ours.logits, expected.logits)
    # 16 = 9 + 5 + 2 labels count; the model's own loss is their mean.
    assert token_loss_sum(ours.logits, labels).item() / 16 == pytest.approx(expected.loss.item(), rel=1e-5)
    assert decoder_input_ids.shape == labels.shape and decoder_input_ids.min() >= 0


@every_family
def test_batch_loss_of_a_filler_row_is_zero(model_dirs, marian_tokenizer, family):
    model = load(model_dirs, family, marian_tokenizer, dropout=0.0)
    inputs, labels = random_batch(marian_tokenizer)
    fillers = torch.full_like(labels, IGNORE_INDEX)
    loss = token_loss_sum(model(**inputs, decoder_input_ids=shift_right(model, fillers)).logits, fillers)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters() if p.requires_grad)
    # A filler beside real rows changes none of them.
    labels[1] = IGNORE_INDEX
    assert torch.equal(shift_right(model, labels)[[0, 2]], shift_right(model, labels[[0, 2]]))


# The loss at real positions alone


def with_positions(inputs, labels):
    return {**inputs, "labels": labels, "target_positions": (labels.flatten() >= 0).nonzero().flatten()}


@every_family
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_batch_loss_at_real_positions_equals_loss_of_all_logits(model_dirs, marian_tokenizer, family, smoothing):
    model = load(model_dirs, family, marian_tokenizer, dropout=0.0)
    inputs, labels = random_batch(marian_tokenizer)
    if hasattr(model, "final_logits_bias"):  # not zero in the converted models
        model.final_logits_bias.uniform_(-1, 1)
    results = []
    for batch in ({**inputs, "labels": labels}, with_positions(inputs, labels)):
        loss = batch_loss_sum(model, batch, label_smoothing=smoothing)
        loss.backward()
        results.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
        model.zero_grad()
    (whole, expected), (ours, found) = results
    assert ours == pytest.approx(whole, rel=1e-6)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-6 * norm, name


@every_family
def test_batch_loss_projects_real_positions_only(model_dirs, marian_tokenizer, family):
    model = load(model_dirs, family, marian_tokenizer, dropout=0.0)
    inputs, labels = random_batch(marian_tokenizer)
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, logits: sizes.append(logits.numel()))
    batch_loss_sum(model, with_positions(inputs, labels))
    assert sizes == [0]
    # The model is left as it was.
    assert model(**inputs, decoder_input_ids=shift_right(model, labels)).logits.shape[:2] == labels.shape


@pytest.mark.parametrize(("dtype", "is_projected"), [(torch.bfloat16, True), (torch.float16, False)])
def test_batch_loss_projects_in_the_precision_of_the_forward(model_dirs, marian_tokenizer, dtype, is_projected):
    """As accelerate has it: autocast is inside of what is called, not around it."""
    model = load(model_dirs, "marian", marian_tokenizer, dropout=0.0)
    inputs, labels = random_batch(marian_tokenizer)
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda layer, given, logits: sizes.append(logits.numel()))

    def wrapped(**given):
        with torch.autocast("cpu", dtype):
            return model(**given)

    batch = with_positions(inputs, labels)
    loss = batch_loss_sum(model, batch, wrapped_model=wrapped)
    assert (sizes == [0]) == is_projected
    with torch.autocast("cpu", dtype):
        around = batch_loss_sum(model, batch)
    assert loss.dtype == torch.float32 and loss.item() == around.item()
    assert loss.item() != batch_loss_sum(model, batch).item()  # fp32's


# Dropout


class DropoutRates(TorchFunctionMode):
    """Notes the probability of every dropout that a forward really makes."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.nn.functional.dropout:
            training = kwargs.get("training", args[2] if len(args) > 2 else True)
            self.rates.append((kwargs["p"] if "p" in kwargs else args[1]) if training else 0.0)
        return function(*args, **kwargs)


@every_family
def test_dropout_replaces_only_the_rate_of_the_layers(model_dirs, marian_tokenizer, family, tmp_path):
    inputs, labels = random_batch(marian_tokenizer)
    source = load(model_dirs, family, marian_tokenizer)
    source.save_pretrained(tmp_path)
    has_others = "activation_dropout" in json.loads((tmp_path / "config.json").read_text())
    if has_others:
        edit_json(tmp_path / "config.json", activation_dropout=0, attention_dropout=0.2)  # an integer, as JSON has it
    model = load_model(str(tmp_path), marian_tokenizer, dropout=0.4, attention="eager").train()
    with DropoutRates() as seen:
        model(**inputs, labels=labels)
    assert set(seen.rates) == ({0.0, 0.2, 0.4} if has_others else {0.4})
    # Embeddings, attentions (1 + 2, on the weights and on the result) and feed-forward: 2 + 6 + 2 and more.
    assert len(seen.rates) >= 10


@every_family
def test_dropout_zero_makes_training_forwards_equal(model_dirs, marian_tokenizer, family):
    """The folders have 0.5 of every kind, layer drop included."""
    inputs, labels = random_batch(marian_tokenizer)
    torch.manual_seed(0)
    random = load(model_dirs, family, marian_tokenizer).train()
    assert not torch.equal(random(**inputs, labels=labels).logits, random(**inputs, labels=labels).logits)
    model = load(model_dirs, family, marian_tokenizer, dropout=0.0).train()
    first = model(**inputs, labels=labels).logits
    assert all(torch.equal(model(**inputs, labels=labels).logits, first) for _ in range(4))
    assert torch.equal(model.eval()(**inputs, labels=labels).logits, first)


@every_family
def test_layerdrop_is_disabled_so_that_every_weight_has_a_gradient(model_dirs, marian_tokenizer, family):
    """Data parallelism fails on a trainable weight without one.

    With a layer drop of 0.5 on two layers, 5 forwards would all keep both with a probability of 0.25 ** 5.
    """
    torch.manual_seed(0)
    model = load(model_dirs, family, marian_tokenizer).train()
    inputs, labels = random_batch(marian_tokenizer)
    for _ in range(5):
        model.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


# Loading


def test_load_model_returns_fp32(model_dirs, marian_tokenizer, tmp_path):
    original = load(model_dirs, "marian", marian_tokenizer)
    original.to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weights = original.state_dict()
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) > 20 and all(torch.equal(p, weights[name].float()) for name, p in trainable)


def test_load_model_refuses_a_folder_without_weights(tiny_configs, marian_tokenizer, tmp_path):
    tiny_configs["marian"].save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}", "model.safetensors")


def test_load_model_refuses_a_missing_model(marian_tokenizer, tmp_path):
    for name in (str(tmp_path / "nowhere"), "no-one/no-model", "no-one/no-model@main"):
        with pytest.raises(UserError) as caught:
            load_model(name, marian_tokenizer, dropout=None)
        assert_one_line(caught, f"--model_name_or_path {name}")


@pytest.mark.parametrize("num_bytes", [0, 1_000, -50])
def test_load_model_refuses_a_truncated_file(model_dirs, marian_tokenizer, tmp_path, num_bytes):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:num_bytes])
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}: cannot be loaded")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_load_model_refuses_weights_that_are_not_finite(model_dirs, marian_tokenizer, tmp_path, value):
    model = copy.deepcopy(load(model_dirs, "marian", marian_tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}", "not finite, for example", ".weight")


@pytest.mark.slow
def test_load_model_accepts_a_bias_that_forbids_tokens(model_dirs, marian_tokenizer, tmp_path):
    model = copy.deepcopy(load(model_dirs, "marian", marian_tokenizer))
    model.final_logits_bias[0, 5] = -math.inf
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), marian_tokenizer, dropout=None).final_logits_bias[0, 5] == -math.inf
    model.final_logits_bias[0, 5] = math.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not finite, for example final_logits_bias"):
        load_model(str(tmp_path), marian_tokenizer, dropout=None)


@pytest.mark.parametrize(
    "change",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"d_model": "sixteen"},
        {"encoder_layers": [1]},
        {"vocab_size": -1},
        {"model_type": ["marian"]},
    ],
    ids=str,
)
def test_load_model_refuses_whatever_transformers_cannot_load(model_dirs, marian_tokenizer, tmp_path, change):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}: cannot be loaded")


@pytest.mark.parametrize("method", ["bitsandbytes", "no_such"])
def test_load_model_refuses_quantised_weights(model_dirs, marian_tokenizer, tmp_path, method):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": method, "load_in_8bit": True})
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}: the weights are quantised", f"quant_method {method}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_load_model_refuses_other_corrupt_weights(model_dirs, marian_tokenizer, tmp_path, name):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if name == "pytorch_model.bin":  # a pickle that weights_only refuses
        torch.save({"shared.weight": marian_tokenizer.__class__}, tmp_path / name)
    else:
        (tmp_path / name).write_text('{"weight_map": {"shared.weight": 5}}')
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}: cannot be loaded")


def test_load_model_corrects_outputs_that_are_tuples(model_dirs, marian_tokenizer, tmp_path):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", return_dict=False, torchscript=True)
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None)
    ids = torch.tensor([[5, 6, 0]])
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 3, 400)


def test_load_model_accepts_several_end_tokens(model_dirs, marian_tokenizer, tmp_path):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    for name in ("config.json", "generation_config.json"):
        edit_json(tmp_path / name, eos_token_id=[0, 5])
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None).eval()
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=8, forced_bos_token_id=None)
    assert model.generation_config.eos_token_id == [0, 5]
    edit_json(tmp_path / "config.json", eos_token_id=[7, 5])
    with pytest.raises(UserError, match="the vocabularies disagree"):
        load_model(str(tmp_path), marian_tokenizer, dropout=None)


def two_berts(tokenizer, folder, **ids):
    """Save an EncoderDecoder, whose config has the given special tokens only and no vocab_size or positions."""
    one = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(one, one)
    for name, token_id in ids.items():
        setattr(config, name, token_id)
    EncoderDecoderModel(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return str(folder)


@pytest.mark.slow
def test_load_model_names_the_special_tokens_that_a_config_lacks(marian_tokenizer, tmp_path):
    folder = two_berts(marian_tokenizer, tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(folder, marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}", "Set in its config.json decoder_start_token_id")
    tokenizer = copy.deepcopy(marian_tokenizer)
    tokenizer.eos_token = None  # as BERT's, which ends a text with [SEP]
    with pytest.raises(UserError) as caught:
        load_model(folder, tokenizer, dropout=None)
    assert_one_line(caught, "decoder_start_token_id, ", "eos_token_id, ")


@pytest.mark.slow
def test_load_model_of_an_unlisted_family_is_complete(marian_tokenizer, runtime, tmp_path):
    folder = two_berts(marian_tokenizer, tmp_path, decoder_start_token_id=399, eos_token_id=0)
    model = load_model(folder, marian_tokenizer, dropout=None)
    assert model.config.pad_token_id == marian_tokenizer.pad_token_id
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=8, forced_bos_token_id=None)
    try_model(model, marian_tokenizer, runtime, flag="--model_name_or_path m")
    assert describe_model(model).endswith(" 400 tokens")
    generated = model.generate(input_ids=torch.tensor([[5, 6, 0]]))
    assert generated[0, 0] == 399


@pytest.mark.parametrize(
    ("stored", "ends"),
    [([0, 5], [0, 5]), ([5, 0], [5, 0]), ([5], [0, 5]), (5, [0, 5]), (0, 0), ([0], 0), ([], 0), (None, 0)],
)
def test_configure_generation_ends_with_the_end_of_the_targets(model_dirs, marian_tokenizer, stored, ends):
    model = load(model_dirs, "marian", marian_tokenizer)
    model.generation_config.eos_token_id, model.generation_config.forced_eos_token_id = stored, [0, 5]
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=8, forced_bos_token_id=None)
    assert (model.generation_config.eos_token_id, model.generation_config.forced_eos_token_id) == (ends, 0)


@pytest.mark.parametrize("stored", [[0, 400], -1, ["</s>"]], ids=str)
def test_configure_generation_refuses_an_end_outside_of_the_vocabulary(model_dirs, marian_tokenizer, stored):
    model = load(model_dirs, "marian", marian_tokenizer)
    model.generation_config.eos_token_id = stored
    with pytest.raises(UserError) as caught:
        configure_generation(model, marian_tokenizer, num_beams=2, max_length=8, forced_bos_token_id=None)
    assert_one_line(caught, "invalid eos_token_id in its generation_config.json", str(stored))


def test_load_model_refuses_an_encoder_only(tiny_configs, marian_tokenizer, tmp_path):
    """transformers would draw the decoder at random and go on."""
    T5EncoderModel(copy.deepcopy(tiny_configs["t5"])).save_pretrained(tmp_path)  # it changes its config
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, "T5ForConditionalGeneration", "decoder.")


def test_load_model_refuses_a_model_that_is_not_seq2seq(marian_tokenizer, tmp_path):
    BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(str(tmp_path), marian_tokenizer, dropout=None)
    assert_one_line(caught, f"--model_name_or_path {tmp_path}")
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(config_name=str(tmp_path)), marian_tokenizer, max_length=64)
    assert_one_line(caught, f"--config_name {tmp_path}")


def test_split_revision_keeps_an_at_sign_in_a_folder_name(tmp_path):
    assert split_revision("a/b") == ("a/b", None)
    assert split_revision("a/b@v2") == ("a/b", "v2")
    folder = tmp_path / "me@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


# Vocabulary


def with_vocabulary(config, folder, **values):
    config = type(config).from_dict({**config.to_dict(), **values})
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"vocab_size": 392, "pad_token_id": 391, "decoder_start_token_id": 391}, "got pad token 399"),
        ({"eos_token_id": 2}, "got eos token 0"),
        ({"vocab_size": 400 + 257}, "has 657 rows"),
    ],
)
def test_load_model_refuses_another_vocabulary(tiny_configs, marian_tokenizer, tmp_path, values, reason):
    folder = with_vocabulary(tiny_configs["bart"], tmp_path, **values)
    with pytest.raises(UserError) as caught:
        load_model(folder, marian_tokenizer, dropout=None)
    assert_one_line(caught, "--tokenizer_name", folder, reason, "Use the model's own tokenizer")


def test_load_model_refuses_embeddings_smaller_than_the_vocabulary(tiny_configs, marian_tokenizer, tmp_path):
    """Not resized: only tokens added to the model's own vocabulary are missing in its table."""
    folder = with_vocabulary(
        tiny_configs["t5"], tmp_path, vocab_size=392, pad_token_id=None, eos_token_id=0, decoder_start_token_id=0
    )
    with pytest.raises(UserError) as caught:
        load_model(folder, marian_tokenizer, dropout=None)
    assert_one_line(caught, "got 400 tokens", "has 392 rows")


@pytest.mark.parametrize("num_rows", [400, 424, 400 + 256])
def test_load_model_keeps_larger_embeddings(tiny_configs, marian_tokenizer, tmp_path, num_rows):
    folder = with_vocabulary(tiny_configs["t5"], tmp_path, vocab_size=num_rows)
    model = load_model(folder, marian_tokenizer, dropout=None)
    assert model.get_input_embeddings().weight.shape == (num_rows, 16)
    assert model.config.vocab_size == num_rows


@every_family
def test_load_model_adds_rows_for_added_tokens(model_dirs, marian_tokenizer, family, tmp_path):
    before = load(model_dirs, family, marian_tokenizer).get_input_embeddings().weight.detach()
    tokenizer = load_tokenizer(marian_tokenizer.name_or_path, source_lang="en", target_lang="fr")
    tokenizer.add_tokens(["<a>", "<b>", "<c>"])
    model = load(model_dirs, family, tokenizer)
    assert torch.equal(model.get_input_embeddings().weight[:400], before)
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    # 400 tokens and 3.
    assert again.get_input_embeddings().weight.shape == again.get_output_embeddings().weight.shape == (403, 16)
    logits = again(input_ids=torch.tensor([[402, 5, 0]]), decoder_input_ids=torch.tensor([[401]])).logits
    assert logits.shape == (1, 1, 403)


# Building


def build_tiny(tokenizer, *, max_length=64, **described):
    return build_model(ModelConfig(**(described or {"model_size": "tiny"})), tokenizer, max_length=max_length)


@pytest.mark.parametrize("size", MODEL_SIZES)
def test_build_model_follows_model_sizes(marian_tokenizer, size):
    with torch.device("meta"):  # shapes without memory
        model = build_tiny(marian_tokenizer, model_size=size)
    config = model.config
    expected = MODEL_SIZES[size]
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (
        expected["d_model"],
        expected["layers"],
        expected["layers"],
    )
    assert config.encoder_ffn_dim == config.decoder_ffn_dim == 4 * config.d_model
    assert config.dropout == 0.1
    # A multiple of 8, and no row that the vocabulary does not know: CTranslate2 refuses more.
    assert len(marian_tokenizer) == 400
    assert model.get_input_embeddings().weight.shape == (400, expected["d_model"])
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_build_model_has_positions_for_the_longest_sentence(marian_tokenizer):
    assert build_tiny(marian_tokenizer, max_length=64).config.max_position_embeddings == 512
    model = build_tiny(marian_tokenizer, max_length=600)
    check_positions(position_limit(model.config), max_source_length=600, max_target_length=600)
    ids = torch.full((1, 600), 5)
    with torch.no_grad():
        assert model.eval()(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 600, 400)


def test_build_model_never_generates_pad(marian_tokenizer):
    """The bias of pad is made so large that every other token is out of reach."""
    torch.manual_seed(0)
    model = build_tiny(marian_tokenizer).eval()
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=12, forced_bos_token_id=None)
    pad = marian_tokenizer.pad_token_id
    model.final_logits_bias[0, pad] = 1e4
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 0]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    tokens = model.generate(**inputs)[0].tolist()
    assert tokens[0] == pad  # the decoder's start
    translation = tokens[1 : tokens.index(0) + 1]
    assert translation and pad not in translation
    model.generation_config.bad_words_ids = None
    assert pad in model.generate(**inputs)[0, 1:].tolist()  # so the bias was enough


@every_family
def test_build_model_from_config_uses_the_vocabulary_of_the_tokenizer(tiny_configs, marian_tokenizer, tmp_path, family):
    """The config comes with a vocabulary and special ids of its own, some beyond the tokenizer's 400 tokens."""
    foreign = {"vocab_size": 58_104, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 58_100}
    if "forced_eos_token_id" in tiny_configs[family].to_dict():
        foreign["forced_eos_token_id"] = 2
    type(tiny_configs[family]).from_dict({**tiny_configs[family].to_dict(), **foreign}).save_pretrained(tmp_path)
    model = build_tiny(marian_tokenizer, config_name=str(tmp_path), dropout=0.0)
    assert model.config.model_type == family
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (400, 16)
    pad, eos = marian_tokenizer.pad_token_id, marian_tokenizer.eos_token_id
    assert (model.config.pad_token_id, model.config.eos_token_id, model.config.decoder_start_token_id) == (
        pad,
        eos,
        pad,
    )
    assert getattr(model.config, "forced_eos_token_id", None) in (None, eos)
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=9, forced_bos_token_id=None)
    model.save_pretrained(tmp_path / "export")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export")
    tokens = again.generate(input_ids=torch.tensor([[5, 6, eos]]))
    assert tokens.shape[1] <= 9 and tokens.min() >= 0 and tokens.max() < 400


def test_build_model_refuses_an_invalid_config(tiny_configs, marian_tokenizer, tmp_path):
    # M2M100's positions begin beyond the id of pad: 399 here, in a table of 64.
    few = {**tiny_configs["m2m_100"].to_dict(), "max_position_embeddings": 64}
    type(tiny_configs["m2m_100"]).from_dict(few).save_pretrained(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError) as caught:
            build_tiny(marian_tokenizer, config_name=name)
        assert_one_line(caught, f"--config_name {name}")


# Generation


@every_family
def test_configure_generation_is_saved_with_the_model(model_dirs, marian_tokenizer, tmp_path, family):
    model = load(model_dirs, family, marian_tokenizer)
    num_beams = configure_generation(model, marian_tokenizer, num_beams=None, max_length=33, forced_bos_token_id=None)
    model.save_pretrained(tmp_path)
    generation = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generation_config
    assert num_beams == generation.num_beams == 4
    assert generation.max_length == 33 and generation.max_new_tokens is None
    assert (generation.pad_token_id, generation.eos_token_id) == (399, 0)
    # mBART and the two whose config says so begin with eos.
    assert generation.decoder_start_token_id == (0 if family in ("mbart", "bart", "m2m_100") else 399)
    assert generation.do_sample is False


@every_family
def test_first_tokens_equal_those_of_training(model_dirs, marian_tokenizer, family):
    model = load(model_dirs, family, marian_tokenizer).eval()
    configure_generation(model, marian_tokenizer, num_beams=1, max_length=5, forced_bos_token_id=None)
    tokens = model.generate(input_ids=torch.tensor([[5, 6, 0]]))
    labels = torch.tensor([marian_tokenizer(text_target="a file")["input_ids"]])
    assert tokens[0, 0] == shift_right(model, labels)[0, 0]


def legacy_dir(model_dirs, tokenizer, folder):
    """A folder as OPUS-MT's are: the generation settings stand in config.json."""
    load(model_dirs, "marian", tokenizer).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    edit_json(
        folder / "config.json",
        num_beams=6,
        max_length=512,
        bad_words_ids=[[399]],
        early_stopping=True,
        length_penalty=0.8,
    )
    return folder


@pytest.mark.parametrize(("asked", "expected"), [(None, 6), (3, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_configure_generation_keeps_compatible_settings(model_dirs, marian_tokenizer, tmp_path, asked, expected):
    model = load_model(str(legacy_dir(model_dirs, marian_tokenizer, tmp_path)), marian_tokenizer, dropout=None)
    beams = configure_generation(model, marian_tokenizer, num_beams=asked, max_length=40, forced_bos_token_id=None)
    assert beams == expected
    model.save_pretrained(tmp_path / "export")  # transformers refuses a config that contradicts itself
    generation = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export").generation_config
    assert (generation.num_beams, generation.max_length, generation.bad_words_ids) == (expected, 40, [[399]])
    assert generation.length_penalty == (0.8 if expected > 1 else None)
    assert generation.early_stopping == (True if expected > 1 else None)


def test_configure_generation_disables_sampling(model_dirs, marian_tokenizer, tmp_path):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    edit_json(tmp_path / "generation_config.json", do_sample=True, temperature=0.7, top_p=0.9, num_return_sequences=2)
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None).eval()
    configure_generation(model, marian_tokenizer, num_beams=2, max_length=8, forced_bos_token_id=None)
    model.save_pretrained(tmp_path / "export")
    inputs = torch.tensor([[5, 6, 0], [7, 8, 0]])
    tokens = model.generate(input_ids=inputs)
    assert len(tokens) == 2  # one a row
    assert torch.equal(tokens, model.generate(input_ids=inputs))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beam_groups": 2, "diversity_penalty": 0.5, "stop_strings": ["x"], "max_time": 0.001, "do_sample": True},
        pytest.param(
            {
                "num_return_sequences": 3,
                "output_scores": True,
                "return_dict_in_generate": True,
                "output_attentions": True,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"custom_generate": "some/repository", "penalty_alpha": 0.6, "dola_layers": "low", "constraints": [1]},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"guidance_scale": 1.5, "cache_implementation": "no_such", "force_words_ids": [[5]], "use_mtp": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"prompt_lookup_num_tokens": 3, "token_healing": True, "watermarking_config": {"no": "such"}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("file", ["generation_config.json", pytest.param("config.json", marks=pytest.mark.slow)])
def test_load_model_ignores_options_of_other_searches(model_dirs, marian_tokenizer, tmp_path, options, file):
    lines = []
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    plain = load_model(str(tmp_path), marian_tokenizer, dropout=None, say=lines.append).eval()
    assert lines == []
    edit_json(tmp_path / file, num_beams=2, **options)
    if file == "config.json":  # as earlier versions of transformers stored them
        (tmp_path / "generation_config.json").unlink()
    model = load_model(str(tmp_path), marian_tokenizer, dropout=None, say=lines.append).eval()
    given = {"num_beams": 2, "max_length": 8, "forced_bos_token_id": None}
    for one in (plain, model):
        configure_generation(one, marian_tokenizer, **given)
    (line,) = lines
    known = [name for name in options if file == "generation_config.json" or hasattr(GenerationConfig(), name)]
    assert line.startswith("generation_config.json: ") and all(name in line for name in known)
    inputs = torch.tensor([[5, 6, 0], [7, 8, 0]])
    assert torch.equal(model.generate(input_ids=inputs), plain.generate(input_ids=inputs))
    model.save_pretrained(tmp_path / "export")


@pytest.mark.parametrize("change", [{"num_beams": "four"}, {"num_beams": 999_999_999}, {"early_stopping": "soon"}])
def test_configure_generation_refuses_an_invalid_config(model_dirs, marian_tokenizer, tmp_path, change):
    load(model_dirs, "marian", marian_tokenizer).save_pretrained(tmp_path)
    edit_json(tmp_path / "generation_config.json", **change)
    with pytest.raises(UserError) as caught:
        model = load_model(str(tmp_path), marian_tokenizer, dropout=None)
        configure_generation(model, marian_tokenizer, num_beams=None, max_length=8, forced_bos_token_id=None)
    assert_one_line(caught, "--model_name_or_path", next(iter(change)))


@pytest.fixture(scope="module")
def multilingual_dirs(marian_tokenizer, tmp_path_factory):
    """mBART's, mBART-50's and M2M100's tokenizers over the tokens of marian_tokenizer."""
    folder = tmp_path_factory.mktemp("multilingual")
    spm_path = f"{marian_tokenizer.name_or_path}/source.spm"
    model = sentencepiece.SentencePieceProcessor(model_file=spm_path)
    tokens = [(model.id_to_piece(i), model.get_score(i)) for i in range(2, model.get_piece_size())]
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    specials = [(name, 0.0) for name in names]
    MBartTokenizer(vocab=specials + tokens).save_pretrained(folder / "mbart")
    MBart50Tokenizer(vocab=specials + tokens).save_pretrained(folder / "mbart50")
    vocabulary = {token: i for i, token in enumerate(names + [token for token, _ in tokens])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    M2M100Tokenizer(str(folder / "vocab.json"), spm_path).save_pretrained(folder / "m2m_100")
    return folder


@pytest.mark.parametrize(
    ("name", "languages", "starts_with_the_language"),
    [
        ("mbart", ("en_XX", "fr_XX"), True),
        ("mbart50", ("en_XX", "fr_XX"), False),
        ("m2m_100", ("en", "fr"), False),
    ],
)
def test_first_tokens_contain_the_target_language(
    tiny_configs, multilingual_dirs, tmp_path, name, languages, starts_with_the_language
):
    tokenizer = load_tokenizer(str(multilingual_dirs / name), source_lang=languages[0], target_lang=languages[1])
    config = tiny_configs["m2m_100" if name == "m2m_100" else "mbart"]
    type(config).from_dict({**config.to_dict(), "decoder_start_token_id": 2}).save_pretrained(tmp_path)
    model = build_tiny(tokenizer, config_name=str(tmp_path)).eval()
    language = target_language_token(tokenizer)
    configure_generation(model, tokenizer, num_beams=1, max_length=6, forced_bos_token_id=language)
    labels = torch.tensor([tokenizer(text_target="Open the file")["input_ids"]])
    tokens = model.generate(input_ids=torch.tensor([[5, 6, 7, 2]]))[0].tolist()
    if starts_with_the_language:
        # mBART's labels are "X eos language", its decoder reads "language X eos".
        assert tokens[0] == language == shift_right(model, labels)[0, 0]
        assert model.generation_config.forced_bos_token_id is None
    else:
        # "language X eos" is predicted after eos.
        assert tokens[:2] == [2, language] == shift_right(model, labels)[0, :2].tolist()


# Positions


def test_check_positions_refuses_longer_lengths(marian_tokenizer):
    model = build_tiny(marian_tokenizer)
    check_positions(position_limit(model.config), max_source_length=512, max_target_length=512)
    with pytest.raises(UserError) as caught:
        check_positions(position_limit(model.config), max_source_length=513, max_target_length=512)
    assert_one_line(caught, "--max_source_length: ", "(got 513)", "Give at most 512")
    with pytest.raises(UserError, match=r"--max_target_length: .*got 2000"):
        check_positions(position_limit(model.config), max_source_length=1, max_target_length=2000)


@pytest.mark.parametrize("family", ["t5", "m2m_100"])
def test_check_positions_allows_any_length_without_a_table(model_dirs, marian_tokenizer, family):
    model = load(model_dirs, family, marian_tokenizer).eval()
    check_positions(position_limit(model.config), max_source_length=700, max_target_length=700)
    ids = torch.full((1, 700), 5)
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 700, 400)


def test_defaults_of_configs_are_unchanged(tmp_path):
    """What the tests above rely on: no family sets a start or a layer drop that this file has not seen."""
    MarianConfig().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).decoder_start_token_id == 58_100
    assert MBartConfig().decoder_start_token_id is None
    assert not hasattr(T5Config(), "max_position_embeddings")


@pytest.mark.parametrize("family", ["marian", "t5", "mbart", "m2m_100", "bart", "pegasus"])
def test_additive_mask_equals_the_mask_of_the_model(tiny_configs, family):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs[family], attn_implementation="eager").eval()
    ids = torch.arange(3, 23).reshape(2, 10)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    decoder_ids = torch.arange(3, 11).reshape(2, 4)
    with torch.no_grad():
        expected, found = (
            model(input_ids=ids, attention_mask=one, decoder_input_ids=decoder_ids, use_cache=False).logits
            for one in (mask, additive_mask(mask))
        )
        unmasked = model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False).logits
    assert torch.equal(found, expected)
    assert not torch.allclose(unmasked[0], expected[0], atol=1e-6)
