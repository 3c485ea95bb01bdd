"""One CUDA device: what it computes is what the CPU computes, and what a run promises holds there too."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mtloop.checkpoint.listing import list_checkpoints
from mtloop.trainer.loop import train
from mtloop.trainer.step import train_step
from tests.support.launch import PYTHON, launch_command, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEMO = [
    "--dataset_name", "demo", "--source_lang", "en", "--target_lang", "fr", "--train_tokenizer", "--vocab_size", "800",
    "--model_size", "tiny", "--tokens_per_update", "450", "--num_warmup_steps", "0", "--num_beams", "1",
    "--max_train_samples", "2000", "--max_eval_samples", "50", "--val_max_target_length", "32", "--logging_steps", "1",
]  # fmt: skip
# As in tests/e2e/test_precision.py; "no" are other sums of the same fp32 products, of which none is rounded to TF32.
NEARNESS = {"no": 1e-5, "fp16": 2.0**-11, "bf16": 2.0**-8}


def launched(folder, *flags):
    """Run train.py by single_gpu.yaml to its end; return its first line and its logged losses."""
    done = run(launch_command("train.py", *DEMO, *flags, "--output_dir", folder, file="single_gpu"))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return done.stdout.splitlines()[0], [line["loss"] for line in lines if "loss" in line]


# precision


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_demo_learns_in_every_precision(tmp_path, precision):
    flags = ["--dropout", "0", "--lr_scheduler_type", "constant", "--max_train_steps"]
    first, losses = launched(tmp_path / "gpu", *flags, "60", "--mixed_precision", precision)
    assert first.startswith("device cuda (") and "1 process ·" in first
    assert f"precision {'fp32' if precision == 'no' else precision}" in first
    assert len(losses) == 60 and sum(losses[-10:]) < 0.9 * sum(losses[:10])  # on a CPU it falls by a fifth
    _, on_cpu = launched(tmp_path / "cpu", *flags, "5", "--use_cpu", "--mixed_precision", "no")
    assert losses[:5] == pytest.approx(on_cpu, rel=NEARNESS[precision])


# resume


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_resume_is_bitwise_the_run_that_was_never_stopped(tmp_path, precision):
    folder = tmp_path / "run"
    flags = ["--deterministic", "--mixed_precision", precision, "--dropout", "0.1", "--max_train_steps", "12"]
    flags += ["--save_steps", "6"]
    _, losses = launched(folder, *flags)
    weights = (folder / "final" / "model.safetensors").read_bytes()
    _, again = launched(folder, *flags, "--resume_from_checkpoint", "step_6")
    assert again == losses and len(losses) == 12
    assert (folder / "final" / "model.safetensors").read_bytes() == weights


# evaluation


def test_an_evaluation_is_that_of_the_cpu(demo_run, tmp_path):
    found = {}
    for device, flags in (("gpu", []), ("cpu", ["--use_cpu"])):
        folder = tmp_path / device
        command = [PYTHON, "-m", "mtloop", "evaluate", "--model", str(demo_run.folder), *flags]
        done = run([*command, "--mixed_precision", "no", "-o", str(folder)])
        assert done.returncode == 0, done.stderr[-3000:]
        lines = map(json.loads, (folder / "valid.jsonl").read_text(encoding="utf-8").splitlines())
        found[device] = [line["hypothesis"] for line in lines]
    assert len(found["gpu"]) == len(found["cpu"]) == 1_000
    # fp32 sums differ in the order of their terms: a beam whose scores lie within 1e-6 of another's may change places.
    same = sum(one == other for one, other in zip(found["gpu"], found["cpu"], strict=True))
    assert same >= 990


# memory


def bytes_per_token(config, longest):
    """What forward and backward keep, at most, of a padded token of source or target in fp32: bytes.

    A layer keeps what goes into each of its matrix products, norms, activations and dropouts: of a decoder's, with two
    attentions, fewer than 20 vectors of the model's width and 3 of the inner one, and a head's 3 rows of attention
    weights (scores, probabilities, mask) twice. Of the logits there are 4 copies at most: as computed, as
    log-probabilities, and the gradient of both.
    """
    layers = config.encoder_layers + config.decoder_layers
    inner = max(config.encoder_ffn_dim, config.decoder_ffn_dim)
    of_layer = 20 * config.d_model + 3 * inner + 2 * 3 * config.decoder_attention_heads * longest
    return 4 * (layers * of_layer + 4 * config.vocab_size)


def test_the_peak_of_memory_is_that_of_one_micro_batch(new_run):
    """Beside weights and moments, which stay: the gradients, and one micro-batch within the cap, of however many."""
    peaks, num_micro_batches = [], []
    for max_tokens in (128, 1_024):
        run = new_run(str(max_tokens), sentences_per_update=54, max_tokens_per_micro_batch=max_tokens, dropout=0.1)
        update = next(run.loader.updates(epoch=0, cursor=0))
        train_step(run, update)  # from now on AdamW's moments and cuBLAS's workspace are there
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        train_step(run, update)
        peaks.append(torch.cuda.max_memory_allocated() - held)
        num_micro_batches.append(len(update.micro_batches))
        gradients = sum(4 * weight.numel() for weight in run.model.parameters() if weight.requires_grad)
        longest = max(batch[side].shape[1] for batch in update.micro_batches for side in ("input_ids", "labels"))
        # On a CPU the forward keeps 0.36 of this, at both caps; the rest is for the backward's own. 16 MiB: workspaces.
        bound = gradients + max_tokens * bytes_per_token(run.model.config, longest) + 2**24
        assert peaks[-1] <= bound
    assert num_micro_batches[0] > num_micro_batches[1] and peaks[0] < peaks[1]


# checkpoints


def test_a_checkpoint_holds_the_weights_of_its_step_while_training_goes_on(new_run):
    """The device runs ahead of the host, and a copy that is not waited for would be of a later step."""
    run = new_run(max_train_steps=8, save_steps=2, eval_steps=100, logging_steps=100)
    saved, save = {}, run.checkpointer.save

    def noted(**options):
        # A copy on the device, in the order of its own work.
        saved[run.state.step] = {name: weight.detach().clone() for name, weight in run.model.state_dict().items()}
        save(**options)

    run.checkpointer.save = noted
    assert train(run) is None
    checkpoints = dict(list_checkpoints(run.folder))
    assert sorted(checkpoints) == sorted(saved) == [2, 4, 6, 8]
    for step, path in checkpoints.items():
        for name, weight in load_file(path / "model.safetensors").items():
            assert torch.equal(weight, saved[step][name].cpu()), (step, name)
