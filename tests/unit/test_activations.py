"""Test activations: a backward that computes them again gives the same bits and holds less; refused where it cannot."""

import copy
import warnings

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from mtloop.config.model import TuningConfig
from mtloop.errors import UserError
from mtloop.model.activations import is_recomputing, keeping_two_layers, recompute_activations
from mtloop.model.adapters import choose_trained
from mtloop.model.loading import layers_of
from mtloop.trainer import calibration
from mtloop.trainer.step import train_step

FLAG = "--gradient_checkpointing"
LIKE_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "mbart", "m2m_100", "pegasus")]
# All weights; an adapter in every layer; an encoder without any trained weight.
TRAINED = {"all": {}, "lora": {"lora_rank": 2, "lora_alpha": 4}, "frozen": {"freeze": ["encoder", "embeddings"]}}


def new_model(config, trained="all"):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config)).train()
    choose_trained(model, TuningConfig(**TRAINED[trained]), name="owner/base")
    return model


def loss_and_gradients(model, *, precision=None):
    """Run a forward and backward with dropout; return the loss, the gradients, and how often layers were computed."""
    calls = []
    for layer in layers_of(model):
        first = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (3, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(input_ids=ids, decoder_input_ids=ids.flip(1), use_cache=False).logits.float().logsumexp(-1).sum()
        loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}, len(calls)


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("family", ["marian", "t5", *LIKE_OTHERS])
@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_the_same_bits_with_dropout(tiny_configs, family, trained, precision):
    config = tiny_configs[family]
    loss, gradients, num_calls = loss_and_gradients(new_model(config, trained), precision=precision)
    model = new_model(config, trained)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # transformers 5.23 has another name than those before
        recompute_activations(model, flag=FLAG)
        again, found, num_again = loss_and_gradients(model, precision=precision)
    assert is_recomputing(model) and torch.equal(loss, again)
    assert gradients.keys() == found.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, found[name]), name
    # A layer without trained weights, behind which there are none, has no backward.
    num_layers = num_calls - config.num_hidden_layers if trained == "frozen" else num_calls
    assert num_again == num_calls + num_layers


def test_a_model_that_cannot_is_refused_in_one_line(tiny_configs):
    model = new_model(tiny_configs["marian"])
    model.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match=r"^--gradient_checkpointing: a marian model does not support it\. Leave it"):
        recompute_activations(model, flag=FLAG)
    assert not is_recomputing(model)


@pytest.mark.slow
def test_two_layers_are_kept_while_memory_is_measured(new_run, marian_config, marian_tokenizer, monkeypatch, tmp_path):
    """The limit of a forward that auto finds grows; a measurement leaves all layers as they were."""
    monkeypatch.setattr(calibration, "free_memory", lambda device: 10**8)
    monkeypatch.setattr(calibration, "MAX_TOKENS_ON_CPU", 10**6)
    deep = {"encoder_layers": 3, "decoder_layers": 3, "d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    marian_config(marian_tokenizer, **deep).save_pretrained(tmp_path)
    flags = {"config_name": str(tmp_path)}
    runs = [new_run(name, **flags, gradient_checkpointing=name == "again") for name in ("kept", "again")]
    kept, again = map(calibration.probe, runs)
    assert again > 1.5 * kept > 4_096, (kept, again)
    layers = layers_of(runs[1].model)
    assert all(layer.gradient_checkpointing for layer in layers)
    with keeping_two_layers(runs[1].model):
        assert [layer.gradient_checkpointing for layer in layers] == [False, True, True, True, True, False]
    with keeping_two_layers(runs[0].model):
        assert not is_recomputing(runs[0].model)


@pytest.mark.slow
def test_a_run_trains_the_same_with_the_flag_and_without(new_run):
    flags = {"dropout": 0.1, "lora_rank": None, "max_tokens_per_micro_batch": 200}
    weights, hardware = [], []
    for name in ("kept", "again"):
        run = new_run(name, **flags, gradient_checkpointing=name == "again")
        updates = run.loader.updates(epoch=0, cursor=0)
        losses = [train_step(run, next(updates)).loss_sum.item() for _ in range(3)]
        weights.append((losses, {key: value.clone() for key, value in run.model.state_dict().items()}))
        hardware.append(run.checkpointer.identity["hardware"])
        assert is_recomputing(run.model) == (name == "again")
    (losses, before), (found, after) = weights
    assert losses == found and all(torch.equal(value, after[key]) for key, value in before.items())
    # What auto has measured is kept for the hardware: another limit fits.
    assert hardware[1] == f"{hardware[0]} · activations computed again"
    # The same run: a resume may have the flag or not.
    assert not is_recomputing(new_run("again", **flags).model)
