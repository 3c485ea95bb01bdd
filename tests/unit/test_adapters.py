"""Test adapters: frozen parts stay bitwise equal; an adapter trains, merges into the plain model, and resumes."""

import copy
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, MarianConfig

from mtloop.batching.loader import collate
from mtloop.checkpoint.manifest import read_manifest
from mtloop.checkpoint.restore import load_weights
from mtloop.config.model import TuningConfig
from mtloop.errors import UserError
from mtloop.model.adapters import (
    ADAPTER_NAME,
    WEIGHTS_NAME,
    base_fingerprint,
    choose_trained,
    merged_weights,
    save_adapter,
    stored_adapter,
)
from mtloop.trainer.loop import train
from mtloop.trainer.step import train_step

# One layer a side: query and value of the encoder's, the decoder's and the cross-attention.
NUM_ATTENTION_TARGETS = 6
# Bart, Pegasus and M2M100 name and divide their layers as MBart and Marian do.
LIKE_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("bart", "m2m_100", "pegasus")]
FAMILIES = ["marian", "mbart", "t5", *LIKE_OTHERS]
LORA = {"lora_rank": 2, "lora_alpha": 6}


def new_model(config):
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(copy.deepcopy(config)).eval()


def adapted(config, **flags):
    """A model with an adapter that does something: as it is made, B is 0."""
    model = new_model(config)
    choose_trained(model, TuningConfig(**{**LORA, **flags}), name="owner/base")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def batch_of(model):
    torch.manual_seed(1)
    ids = torch.randint(5, model.config.vocab_size, (3, 7))
    return {"input_ids": ids, "decoder_input_ids": ids.flip(1)}


@torch.no_grad()
def logits_of(model):
    return model(**batch_of(model)).logits


def learn(model, *, num_steps=2):
    """Some steps of AdamW with weight decay on what is trainable, as build_optimizer chooses it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(num_steps):
        batch = batch_of(model)
        model(**batch, labels=batch["decoder_input_ids"]).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # data parallelism waits for each
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)  # no memory for those
        optimizer.step()
        optimizer.zero_grad()


def changed_by_learning(model):
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learn(model)
    return {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}


# the adapter


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_attach_lora_adapts_query_and_value_and_trains_nothing_else(tiny_configs, family):
    model = new_model(tiny_configs[family])
    plain_class, plain_logits = type(model), logits_of(model)
    (line,) = choose_trained(model, TuningConfig(**LORA), name="owner/base")
    names = "q, v" if family == "t5" else "q_proj, v_proj"
    assert line == f"adapter: LoRA of rank 2, alpha 6, on {NUM_ATTENTION_TARGETS} layers: {names}"
    assert type(model) is plain_class and torch.equal(logits_of(model), plain_logits)  # B is 0
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trainable) == 2 * NUM_ATTENTION_TARGETS and all(".lora_" in name for name in trainable)
    assert changed_by_learning(model) == set(trainable)


@pytest.mark.parametrize("modules", [None, pytest.param(["all-linear"], marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_merged_weights_give_the_logits_of_the_adapted_model(tiny_configs, tmp_path, family, modules):
    model = adapted(tiny_configs[family], lora_target_modules=modules)
    expected = logits_of(model)
    base = new_model(tiny_configs[family])
    assert (logits_of(base) - expected).abs().max() > 1e-2
    # Plain transformers, from the merged weights.
    weights = model.state_dict()
    merged = merged_weights(model, weights)
    assert merged.keys() == base.state_dict().keys()
    model.save_pretrained(tmp_path, state_dict=merged)
    save_adapter(model, weights, tmp_path / ADAPTER_NAME)
    plain, found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert (logits_of(plain.eval()) - expected).abs().max() < 1e-5
    # peft, from the adapter beside the base; and what peft itself merges is the same.
    by_peft = PeftModel.from_pretrained(base, tmp_path / ADAPTER_NAME)
    assert torch.equal(logits_of(by_peft), expected)
    by_peft = by_peft.merge_and_unload().state_dict()
    for name, weight in merged.items():
        assert torch.allclose(weight, by_peft[name], atol=1e-6), name
    # And our own way back, bit by bit.
    again = adapted(tiny_configs[family], lora_target_modules=modules)
    load_weights(again, tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.slow
def test_save_adapter_records_the_base_without_its_path(tiny_configs, tmp_path):
    local = tmp_path / "secret" / "opus"
    local.mkdir(parents=True)
    for name, base, revision in (("owner/base@v2", "owner/base", "v2"), (str(local), "opus", None)):
        model = new_model(tiny_configs["marian"])
        choose_trained(model, TuningConfig(**LORA), name=name)
        save_adapter(model, model.state_dict(), tmp_path / base.replace("/", "-"))
        record = json.loads((tmp_path / base.replace("/", "-") / "adapter_config.json").read_text())
        assert (record["base_model_name_or_path"], record["revision"]) == (base, revision)
        assert record["inference_mode"] and record["task_type"] == "SEQ_2_SEQ_LM" and record["r"] == 2


def test_stored_adapter_refuses_another_rank_or_other_layers(tiny_configs, tmp_path):
    model = adapted(tiny_configs["marian"])
    save_adapter(model, model.state_dict(), tmp_path / ADAPTER_NAME)
    with pytest.raises(ValueError, match=r"of another rank: .*lora_A.weight is \[2, 16\], here \[3, 16\]"):
        stored_adapter(adapted(tiny_configs["marian"], lora_rank=3), tmp_path / ADAPTER_NAME)
    with pytest.raises(ValueError, match="of other layers"):
        stored_adapter(adapted(tiny_configs["marian"], lora_target_modules=["q_proj"]), tmp_path / ADAPTER_NAME)
    with pytest.raises(ValueError, match="without --lora_rank"):
        load_weights(model, tmp_path / ADAPTER_NAME)


def test_base_fingerprint_ignores_the_adapter(tiny_configs):
    model = adapted(tiny_configs["marian"])
    before = base_fingerprint(model)
    learn(model)
    assert base_fingerprint(model) == before == base_fingerprint(adapted(tiny_configs["marian"], lora_rank=3))
    with torch.no_grad():
        model.model.decoder.layers[0].self_attn.q_proj.base_layer.weight[3, 4] += 1e-6
    assert base_fingerprint(model) != before
    assert base_fingerprint(new_model(tiny_configs["marian"])) is None


@pytest.mark.parametrize("target", ["lm_head", "shared", "proj", "layer_norm"])
def test_attach_lora_refuses_layers_that_cannot_be_merged(tiny_configs, target):
    """lm_head is tied to the table of tokens: merged into it, an adapter would change the embeddings as well."""
    with pytest.raises(
        UserError, match=f"^--lora_target_modules: .*got {target}.. Give one or more of fc1, fc2, k_proj"
    ):
        adapted(tiny_configs["marian"], lora_target_modules=["q_proj", target])


def test_attach_lora_without_peft_names_the_package(tiny_configs, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="--lora_rank: .*pip install (peft|.*lora.*)`.$"):
        adapted(tiny_configs["marian"])


def test_choose_trained_refuses_an_adapter_as_model(tiny_configs, tmp_path):
    """transformers loads its base with it, and would then save the adapter alone."""
    model = adapted(tiny_configs["marian"])
    save_adapter(model, model.state_dict(), tmp_path / ADAPTER_NAME)
    new_model(tiny_configs["marian"]).save_pretrained(tmp_path / "base")
    path = tmp_path / ADAPTER_NAME / "adapter_config.json"
    path.write_text(path.read_text().replace("owner/base", str(tmp_path / "base")))
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / ADAPTER_NAME)
    for config in (TuningConfig(), TuningConfig(**LORA)):
        with pytest.raises(UserError, match="--model_name_or_path somewhere: an adapter, not a model"):
            choose_trained(loaded, config, name="somewhere")


# frozen parts


def parts_of(model, name):
    """The parts that a weight belongs to, by its name."""
    if "final_logits" in name or name == "lm_head.weight":
        return set()
    sides = {side for side in ("encoder", "decoder") if f"{side}." in f".{name}"}
    if "shared" in name or "embed_tokens" in name:
        return {"embeddings"}
    return sides | {"embeddings"} if "embed_positions" in name else sides


@pytest.mark.parametrize(
    "parts", [["encoder"], ["decoder"], ["embeddings"], pytest.param(["encoder", "embeddings"], marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_freeze_keeps_the_parts_bitwise_and_trains_the_rest(tiny_configs, family, parts):
    model = new_model(tiny_configs[family])
    movable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    (line,) = choose_trained(model, TuningConfig(freeze=parts), name=None)
    is_tied = " (with the output layer, which is tied to the embeddings)" if "embeddings" in parts else ""
    assert line == f"frozen: {', '.join(parts)}{is_tied}"
    frozen = {name for name in movable if parts_of(model, name) & set(parts)}
    assert frozen and movable - frozen
    moved = changed_by_learning(model)
    assert not moved & frozen
    # The gradient of a key's bias is 0 but for rounding: a softmax does not see it.
    assert {name for name in movable - frozen if not name.endswith("k_proj.bias")} <= moved


@pytest.mark.parametrize("is_t5", [False, True])
def test_freeze_embeddings_trains_an_untied_output(tiny_configs, is_t5):
    if is_t5:  # as a file of T5 1.1 leaves it, whatever its config says
        model = new_model(tiny_configs["t5"])
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    else:
        own = {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False}
        model = new_model(MarianConfig(**{**tiny_configs["marian"].to_dict(), **own}))
    assert choose_trained(model, TuningConfig(freeze=["embeddings"]), name=None) == ["frozen: embeddings"]
    moved = changed_by_learning(model)
    assert "lm_head.weight" in moved
    assert not any("shared" in name or "embed_" in name for name in moved)


def test_freeze_refuses_all_parts(tiny_configs):
    with pytest.raises(
        UserError, match="--freeze: nothing of the model is left to train .got encoder,decoder,embeddings"
    ):
        choose_trained(
            new_model(tiny_configs["marian"]), TuningConfig(freeze=["encoder,decoder", "embeddings"]), name=None
        )


# whole runs


@pytest.fixture
def lora_run(new_run, model_path):
    """Build a run that trains an adapter beside the tiny model."""

    def build(name="run", **flags):
        given = {"model_name_or_path": str(model_path), "model_size": None, "tokenizer_name": None, "lora_rank": 4}
        return new_run(name, **{**given, "lora_dropout": 0.1, "dropout": 0.1, "num_train_epochs": 2, **flags})

    return build


def hashes_of(path):
    """What a checkpoint's manifest says of its weights."""
    files = read_manifest(path)["files"]
    return {name: files[name]["sha256"] for name in files if name.endswith((".safetensors", "optimizer.pt"))}


@pytest.mark.slow
def test_resume_with_an_adapter_is_bitwise_equal(lora_run, runtime, capsys):
    whole = lora_run("whole")
    assert train(whole) is None
    shown = capsys.readouterr().out
    assert "adapter: LoRA of rank 4, alpha 8, on 6 layers: q_proj, v_proj" in shown
    assert f"{6 * 2 * 4 * 128:,} of them trainable" in shown  # on each of 6 layers A [4, 128] and B [128, 4]
    assert len(whole.optimizer.state_dict()["state"]) == 2 * NUM_ATTENTION_TARGETS
    run = lora_run("stopped")
    run.runtime.signals.listen(raises=False)
    run.optimizer.optimizer.register_step_post_hook(
        lambda *_: os.kill(os.getpid(), signal.SIGTERM) if run.state.step == 2 else None  # in the third update
    )
    assert train(run) == signal.SIGTERM and run.state.step == 3
    runtime.signals.number = None
    again = lora_run("stopped")
    assert train(again) is None
    last = f"checkpoints/step_{whole.state.step}"
    hashes = hashes_of(whole.folder.path / last)
    assert set(hashes) == {"model.safetensors", f"{ADAPTER_NAME}/{WEIGHTS_NAME}", "training/optimizer.pt"}
    assert hashes_of(again.folder.path / last) == hashes


@pytest.mark.slow
def test_checkpoints_and_final_contain_plain_model_and_adapter(lora_run, model_path):
    run = lora_run(load_best_model_at_end=True)
    train(run)
    base = load_file(model_path / "model.safetensors")
    before = load_file(run.folder.checkpoints_dir / "step_0" / "model.safetensors")
    assert before.keys() == base.keys() and all(torch.equal(before[name], base[name]) for name in base)
    last = run.folder.checkpoints_dir / f"step_{run.state.step}"
    weights = load_file(last / "model.safetensors")
    moved = {name for name in base if not torch.equal(weights[name], base[name])}
    assert len(moved) == NUM_ATTENTION_TARGETS and all(
        name.endswith(("q_proj.weight", "v_proj.weight")) for name in moved
    )
    assert (run.folder.final_dir / ADAPTER_NAME / WEIGHTS_NAME).is_file()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 0]]), "decoder_input_ids": torch.tensor([[1, 8, 9]])}
    run.model.eval()
    with torch.no_grad():
        expected = run.model(**batch).logits
        plain = AutoModelForSeq2SeqLM.from_pretrained(last).eval()(**batch).logits
        beside = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(model_path), last / ADAPTER_NAME)
        assert (plain - expected).abs().max() < 1e-5
        # Another attention than the run's on a CPU: the last digits differ.
        assert (beside.eval()(**batch).logits - expected).abs().max() < 1e-5


@pytest.mark.slow
def test_resume_refuses_a_changed_base_unless_allowed(lora_run, model_path, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(model_path, base)
    flags = {"model_name_or_path": str(base), "max_train_steps": 2}
    run = lora_run(**flags)
    train_step(run, next(run.loader.updates(epoch=0, cursor=0)))
    run.state.step = 1
    run.checkpointer.save()
    weights = load_file(base / "model.safetensors")
    weights["model.decoder.layers.0.fc1.weight"][0, 0] += 1e-6
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=f"--model_name_or_path {base}: the adapter was trained on other .*--allow_changed.$"
    ):
        train(lora_run(**flags))
    assert train(lora_run(**flags, allow_changed=True)) is None
    ((change,),) = [noted["changed"] for noted in run.folder.run_record["changes"]]
    assert change.startswith("the weights of --model_name_or_path (fingerprint ")


@pytest.mark.slow
def test_run_keeps_frozen_parts(new_run, model_path, capsys):
    given = {"model_name_or_path": str(model_path), "model_size": None, "tokenizer_name": None, "max_train_steps": 2}
    run = new_run(**given, freeze=["encoder", "embeddings"], learning_rate=1e-2, weight_decay=0.1)
    assert "frozen: encoder, embeddings (with the output layer" in capsys.readouterr().out
    train(run)
    base, final = (load_file(path / "model.safetensors") for path in (model_path, run.folder.final_dir))
    moved = {name for name in base if not torch.equal(base[name], final[name])}
    assert moved and all(name.startswith("model.decoder.layers.") for name in moved)
    assert not (run.folder.final_dir / ADAPTER_NAME).exists()


@pytest.mark.slow
def test_average_of_adapters_is_a_plain_model(lora_run):
    run = lora_run(average_last=2, learning_rate=1e-2)
    assert train(run) is None
    folder = run.folder
    ends = [folder.checkpoints_dir / f"step_{step}" for step in (4, 8)]
    one, other = (load_file(path / "model.safetensors") for path in ends)
    final = load_file(folder.final_dir / "model.safetensors")
    assert all(torch.equal(final[name], ((one[name].double() + other[name].double()) / 2).float()) for name in final)
    assert (ends[0] / "adapter").is_dir() and not (folder.final_dir / "adapter").exists()
    # The run scored the average, not its last weights: no adapter is added to it once more.
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder.final_dir, attn_implementation="eager").eval()
    batch = collate(run.valid.encoded, range(4), pad_id=run.tokenizer.pad_token_id)
    with torch.no_grad():
        expected, found = loaded(**batch).logits, run.model.eval()(**batch).logits
    assert torch.allclose(expected, found, atol=1e-6)
    assert (folder.hypotheses_dir / "average.jsonl").is_file()
