"""Which modules are sharded, and whole tensors out of and into a sharded model; one rank over gloo, no launcher."""

import os

import pytest
import torch
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSeq2SeqLM

from mtloop.checkpoint.restore import load_weights
from mtloop.config.environment import HardwareConfig
from mtloop.errors import UserError
from mtloop.model.activations import recompute_activations
from mtloop.model.loading import layers_of
from mtloop.runtime.launch import (
    DEEPSPEED_OPTIONS,
    FSDP_OPTIONS,
    LAUNCHED,
    Sharding,
    asked_sharding,
    hidden_from_accelerate,
)
from mtloop.runtime.sharding import gathered, is_sharded, put, shard, sharded_state, whole
from tests.support.families import FAMILIES, make_family
from tests.support.launch import launcher_arguments


@pytest.fixture(scope="module")
def one_rank():
    """A process group of this process alone."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.fixture(scope="module")
def family_dir(demo_sample, tmp_path_factory):
    folder, texts = tmp_path_factory.mktemp("families"), [text for pair in demo_sample[:100] for text in pair]
    made = {}

    def make(name):
        if name not in made:
            made[name] = make_family(name, folder, texts)
        return made[name]

    return make


def load(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def shard_all(model, *, is_bf16=False, **how):
    shard(model, Sharding(**how), layers_of(model), device=torch.device("cpu"), is_bf16=is_bf16)
    return model


BATCH = {
    "input_ids": torch.tensor([[9, 8, 7, 6], [5, 9, 6, 8]]),
    "attention_mask": torch.ones(2, 4, dtype=torch.int64),
    "decoder_input_ids": torch.tensor([[4, 6, 9], [4, 7, 8]]),
}

# units


# One for each way to build a layer: the others' layers are copies of Marian's.
FAST = ("marian", "t5")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "madlad"],
)
@pytest.mark.slow
def test_each_layer_of_every_family_is_a_unit_and_the_model_computes_what_it_did(one_rank, family_dir, name):
    plain, model = load(family_dir(name)), load(family_dir(name))
    layers = layers_of(model)
    kinds = {type(layer).__name__ for layer in layers}
    # One layer a side in tests/support/families.py; T5 has one class for both sides.
    assert len(layers) == 2 and len(kinds) == (1 if name.endswith("t5") else 2), kinds
    assert all(kind.endswith(("EncoderLayer", "DecoderLayer", "Block")) for kind in kinds), kinds
    shard_all(model)
    assert [module for module in model.modules() if is_sharded(module)] == [model, *layers]
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert is_sharded(model) and not is_sharded(plain)
    ids = {key: BATCH[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(model(**BATCH).logits, plain(**BATCH).logits)
        found, expected = (one.generate(**ids, max_new_tokens=5, num_beams=2) for one in (model, plain))
    assert torch.equal(found, expected)


def test_layers_are_in_the_order_of_the_forward(tiny_configs):
    config = type(tiny_configs["marian"]).from_dict(
        {**tiny_configs["marian"].to_dict(), "encoder_layers": 3, "decoder_layers": 2}
    )
    model = AutoModelForSeq2SeqLM.from_config(config)
    assert layers_of(model) == [*model.model.encoder.layers, *model.model.decoder.layers]


def test_a_model_without_layers_is_refused_by_its_kind(tiny_configs):
    model = AutoModelForSeq2SeqLM.from_config(tiny_configs["marian"])
    model.model.decoder.layers = torch.nn.Identity()
    with pytest.raises(
        UserError, match=r"^--shard_model: the MarianDecoder of a marian model is not a stack of layers. "
    ):
        layers_of(model)


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.slow
def test_layers_are_given_up_after_the_forward_as_asked(one_rank, family_dir, reshard):
    model = shard_all(load(family_dir("marian")), reshard_after_forward=reshard).train()
    loss = model(**BATCH).logits.sum()
    held = [not isinstance(p, DTensor) for layer in layers_of(model) for p in layer.parameters()]
    assert held == [not reshard] * len(held)
    loss.backward()
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def trained_parameters(model):
    """Return the parameters that get a gradient: transformers 5.17 lets computed positions require one as well."""
    named = [(name, one) for name, one in model.named_parameters() if not name.endswith("embed_positions.weight")]
    return [one for _, one in named if one.requires_grad]


@pytest.mark.slow
def test_bf16_is_of_the_forward_alone(one_rank, family_dir):
    model = shard_all(load(family_dir("marian")), is_bf16=True)
    seen = []
    layers_of(model)[0].fc1.register_forward_hook(lambda module, *_: seen.append(module.weight.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(**BATCH).logits.float().sum().backward()
    assert seen == [torch.bfloat16]
    trained = trained_parameters(model)
    assert {parameter.dtype for parameter in trained} == {parameter.grad.dtype for parameter in trained}
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_activations_are_recomputed_of_a_sharded_model(one_rank, family_dir):
    model = load(family_dir("marian"))
    recompute_activations(model, flag="fsdp_activation_checkpointing")
    shard_all(model).train()
    calls = []
    layers_of(model)[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    model(**BATCH).logits.sum().backward()
    assert len(calls) == 2


# whole tensors out and in


def test_weights_are_gathered_whole_with_tied_ones_as_one(one_rank, family_dir):
    plain, model = load(family_dir("marian")), shard_all(load(family_dir("marian")))
    found, expected = gathered(model.state_dict(keep_vars=True), is_kept=True), plain.state_dict()
    assert list(found) == list(expected)
    for name, weight in expected.items():
        assert type(found[name]) is torch.Tensor and not found[name].requires_grad
        assert torch.equal(found[name], weight), name
    assert found["lm_head.weight"] is found["model.shared.weight"]
    # A rank that only takes part keeps buffers, which every rank has whole, and nothing else.
    others = gathered(model.state_dict(keep_vars=True), is_kept=False)
    assert [name for name, weight in others.items() if weight is not None] == [
        name for name, _ in model.named_buffers()
    ]


def test_a_model_that_is_not_sharded_is_not_copied(family_dir):
    model = load(family_dir("marian"))
    found = gathered(model.state_dict(keep_vars=True), is_kept=True)
    assert all(found[name].data_ptr() == weight.data_ptr() for name, weight in model.state_dict().items())


def test_weights_are_read_into_a_sharded_model_and_stay_tied(one_rank, family_dir, tmp_path):
    source, model = load(family_dir("marian")), shard_all(load(family_dir("marian")))
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name not in source._keys_to_ignore_on_save:  # tables of sines
                parameter.add_(torch.randn_like(parameter))
        model(**BATCH)  # the model's own unit stays gathered after a forward
    source.save_pretrained(tmp_path)
    load_weights(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**BATCH).logits, source(**BATCH).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.slow
def test_an_optimizer_s_state_goes_out_whole_and_comes_back_in_parts(one_rank, family_dir):
    model = shard_all(load(family_dir("marian")))
    trained = trained_parameters(model)
    optimizers = [torch.optim.AdamW(trained, fused=True) for _ in range(2)]
    model(**BATCH).logits.sum().backward()
    optimizers[0].step()
    stored = gathered(optimizers[0].state_dict(), is_kept=True)
    assert {type(value) for entry in stored["state"].values() for value in entry.values()} == {torch.Tensor}
    optimizers[1].load_state_dict(sharded_state(stored, optimizers[1]))
    for parameter in trained:
        one, two = (optimizer.state[parameter] for optimizer in optimizers)
        assert one.keys() == two.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert isinstance(two["exp_avg"], DTensor) and not isinstance(two["step"], DTensor)
        assert all(torch.equal(whole(one[name]), whole(two[name])) for name in one)


def test_a_plain_tensor_is_put_and_returned_as_it_is():
    target, full = torch.zeros(3), torch.arange(3.0)
    put(target, full)
    assert torch.equal(target, full) and whole(target) is target


# what is asked for


def export(monkeypatch, environment):
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)


@pytest.fixture
def launch_file(monkeypatch):
    """The environment of accelerate_configs/fsdp.yaml."""
    export(monkeypatch, prepare_multi_gpu_env(launcher_arguments("fsdp")))


@pytest.fixture
def deepspeed_file(monkeypatch):
    """The environment of accelerate_configs/deepspeed_zero2.yaml."""
    arguments = launcher_arguments("deepspeed_zero2")
    arguments.deepspeed_fields_from_accelerate_config = ""  # set by the launcher on its way
    export(monkeypatch, prepare_deepspeed_cmd_env(arguments)[1])


def test_the_launch_file_asks_for_it_and_a_flag_does_too(launch_file, monkeypatch):
    assert asked_sharding(HardwareConfig(), None) == Sharding()
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    expected = Sharding(reshard_after_forward=False, activation_checkpointing=True)
    assert asked_sharding(HardwareConfig(), None) == expected
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert asked_sharding(HardwareConfig(), None) is None
    assert asked_sharding(HardwareConfig(shard_model=True), None) == Sharding()  # the file's options are of its FSDP


def test_a_zero_stage_says_when_whole_parameters_are_given_up(deepspeed_file, monkeypatch):
    two = asked_sharding(HardwareConfig(), None)
    assert not two.reshard_after_forward and two.name.startswith("ZeRO stage 2 by FSDP2")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert asked_sharding(HardwareConfig(), None).reshard_after_forward
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "1")
    with pytest.raises(UserError, match=r"^deepspeed: zero_stage of the launch file must be 2 or 3 \(got 1\)"):
        asked_sharding(HardwareConfig(), None)


@pytest.mark.parametrize("name", DEEPSPEED_OPTIONS)
def test_an_option_of_deepspeed_that_would_not_be_kept_is_refused(deepspeed_file, monkeypatch, name):
    monkeypatch.setenv(name, "cpu")
    with pytest.raises(UserError, match=r"^deepspeed: [a-z_]+ cpu of the launch file: ") as caught:
        asked_sharding(HardwareConfig(), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FSDP_OPTIONS)
def test_an_option_that_would_not_be_kept_is_refused(launch_file, monkeypatch, name):
    value = {"FSDP_VERSION": "1", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    given = value.get(name, "true")
    monkeypatch.setenv(name, given)
    with pytest.raises(UserError) as caught:
        asked_sharding(HardwareConfig(), None)
    assert str(caught.value).startswith(f"{name.lower()} {given} of the launch file: ")
    assert "\n" not in str(caught.value)


def test_fp16_is_refused(launch_file, monkeypatch):
    with pytest.raises(UserError, match=r"^--mixed_precision: .*\(got fp16\)\. Give bf16"):
        asked_sharding(HardwareConfig(), "fp16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match=r"^--mixed_precision: .*\(got fp16\)"):
        asked_sharding(HardwareConfig(), None)


@pytest.mark.parametrize("name", LAUNCHED)
def test_accelerate_is_not_told(monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with hidden_from_accelerate():
        assert name not in os.environ
    assert os.environ[name] == "true"
