"""A sharded model (FSDP2 over gloo) is trained, evaluated, saved and resumed as a whole one is."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tests.support.launch import launch, launch_command, run, start_command

pytestmark = pytest.mark.distributed

NUM_UPDATES = 20
UPDATES, EVALUATE, TRAIN = (f"tests/distributed/worker_{name}.py" for name in ("updates", "evaluate", "train"))
# The demo's model: two layers a side, and the model's own unit with the tied table of pieces.
NUM_UNITS = 2 + 2 + 1


def train_updates(tmp_path, num_processes, *flags, precision="no", **how):
    """What the first updates of the demo are made of; dropout 0."""
    out = tmp_path / "updates.json"
    words = [UPDATES, num_processes, NUM_UPDATES, out, "demo", "--max_train_samples", 1_000]
    words += ["--output_dir", tmp_path / "run"]
    launch(*words, "--mixed_precision", precision, "--dropout", "0", *flags, num_processes=num_processes, **how)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train_updates(tmp_path_factory.mktemp("alone"), 1)


def assert_sharded(alone, records):
    """In as many units as there are layers and one; each rank holds half, of odd rows one more or one less."""
    whole = alone[0]["num_parameters"][0]
    assert alone[0]["num_units"] == 0
    for record in records:
        assert record["num_units"] == NUM_UNITS
        assert sum(record["num_parameters"]) == whole
        assert max(record["num_parameters"]) < 0.51 * whole


def assert_same_updates(expected, found, tolerance=1e-5):
    assert len(found) == len(expected) == NUM_UPDATES
    for a, b in zip(expected, found, strict=True):
        assert a["ids"] == b["ids"]
        assert b["loss"] == pytest.approx(a["loss"], rel=tolerance)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=tolerance)
    largest = {
        k: max(abs(b[k] / a[k] - 1) for a, b in zip(expected, found, strict=True)) for k in ("loss", "grad_norm")
    }
    print("largest relative differences:", ", ".join(f"{name} {value:.1e}" for name, value in largest.items()))


# updates


@pytest.mark.full  # by default the same with recomputed activations, below
@pytest.mark.parametrize("max_tokens", [4_096, 200])  # one micro-batch an update, and several
def test_updates_are_those_of_one_process(alone, tmp_path, max_tokens):
    found = train_updates(tmp_path, 2, "--shard_model", "--max_tokens_per_micro_batch", max_tokens)
    assert (found[0]["num_micro_batches"][0] > 1) == (max_tokens == 200)
    assert_sharded(alone, found)
    assert_same_updates(alone, found)


@pytest.mark.parametrize("reshard", ["true", pytest.param("false", marks=pytest.mark.full)])
def test_what_the_launch_file_of_fsdp_says_is_done(alone, tmp_path, reshard):
    """Recomputed activations and parameters that stay gathered: memory, not the result; --shard_model for a CPU."""
    options = ["--fsdp_activation_checkpointing", "true", "--fsdp_reshard_after_forward", reshard]
    flags = ["--shard_model", "--max_tokens_per_micro_batch", 200]
    found = train_updates(tmp_path, 2, *flags, file="fsdp", options=options)
    assert found[0]["num_micro_batches"][0] > 1
    assert_sharded(alone, found)
    assert found[0]["num_recomputed"] == NUM_UNITS - 1 and alone[0]["num_recomputed"] == 0
    assert_same_updates(alone, found)


@pytest.mark.full
def test_bf16_is_that_of_whole_models(tmp_path):
    """As the launch file has it: units gathered in bf16, their gradients added up in fp32."""
    for name in ("whole", "sharded"):
        (tmp_path / name).mkdir()
    whole = train_updates(tmp_path / "whole", 1, precision="bf16")
    found = train_updates(tmp_path / "sharded", 2, "--shard_model", precision="bf16", file="fsdp")
    assert_sharded(whole, found)
    # Neighbours in bf16 are 2^-8 of a number apart; embeddings and gains of norms are rounded once more than there.
    assert_same_updates(whole, found, tolerance=2**-8)


# evaluation


@pytest.mark.parametrize("num_rows", [61, pytest.param(1, marks=pytest.mark.full)])
def test_hypotheses_and_scores_are_those_of_one_process(model_path, short_set, demo_sample, tmp_path, num_rows):
    """Several rounds of batches, the last of them short, and a single batch for two ranks."""
    rows = tmp_path / "rows.jsonl"
    known = list(zip(short_set.rows["source"][:16], short_set.rows["target"][:16], strict=True))
    pairs = [*known, *demo_sample][:num_rows]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    launch(EVALUATE, 1, model_path, rows, tmp_path / "one.json")
    launch(EVALUATE, 2, model_path, rows, tmp_path / "two.json", "sharded", num_processes=2)
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["num_batches"] % 2 == 1 and (one["num_batches"] > 2) == (num_rows > 1)
    assert len(two["hyps"]) == num_rows and all(two["hyps"])
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-9)  # float64 sums of the same batches
    assert two == one and two["scores"]["bleu"]["value"] > 1  # the model knows the first 16 rows by heart


# checkpoints

# 640 pairs in updates of 16: 40 updates, about 16 * 37 tokens each, several micro-batches a rank.
FLAGS = [
    "demo", "--mixed_precision", "no", "--cpu_threads", "1", "--max_train_samples", "640", "--max_eval_samples", "12",
    "--vocab_size", "400", "--num_beams", "2", "--val_max_target_length", "16", "--sentences_per_update", "16",
    "--max_tokens_per_micro_batch", "150", "--num_train_epochs", "1",
]  # fmt: skip
NUM_STEPS = 40


def train(tmp_path, name, *segments, flags=()):
    """Train one run in segments of (processes, step to stop at), on several processes sharded; return its updates."""
    folder, log = tmp_path / name, tmp_path / f"{name}.jsonl"
    for num_processes, stop_step in segments:
        words = [TRAIN, num_processes, stop_step, log, *FLAGS, *flags, "--output_dir", folder]
        words += ["--shard_model"] if num_processes > 1 else []
        done = run(start_command(*words, num_processes=num_processes))
        status = json.loads((folder / "status.json").read_text())
        expected = ("stopped", 143, stop_step) if stop_step else ("finished", 0, NUM_STEPS)
        assert (status["status"], status["exit_status"], status["step"]) == expected, done.stderr[-3000:]
        assert ("sharded (FSDP2)" in done.stdout) == (num_processes > 1)
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.full
@pytest.mark.parametrize("flags", [[], ["--freeze", "encoder"]])
def test_saved_by_any_processes_and_resumed_by_any(tmp_path, flags):
    flags = ["--dropout", "0", *flags]
    straight = train(tmp_path, "straight", (1, 0), flags=flags)
    elastic = train(tmp_path, "elastic", (2, 10), (1, 20), (3, 30), (2, 0), flags=flags)
    assert [record["step"] for record in elastic] == list(range(1, NUM_STEPS + 1))
    assert [len(record["num_micro_batches"]) for record in elastic] == [2] * 10 + [1] * 10 + [3] * 10 + [2] * 10
    for a, b in zip(straight, elastic, strict=True):
        assert a["ids"] == b["ids"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), b["step"]
    # The same names, shapes and numbers, and a folder that loads without mtloop.
    one, several = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("straight", "elastic"))
    assert one.keys() == several.keys()
    # AdamW moves a weight by at most its rate a step, 1e-3, whatever the gradient: 1e-5 is a hundredth of one step.
    assert all((one[name] - several[name]).abs().max() < 1e-5 for name in one)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "elastic" / "final")
    assert type(model).__name__ == "MarianMTModel" and model.config.architectures == ["MarianMTModel"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "elastic" / "final")
    assert model.generate(**tokenizer(["Open the file."], return_tensors="pt")).shape[1] > 1


@pytest.mark.full
def test_a_sharded_run_that_is_resumed_is_bitwise_the_one_that_was_not(tmp_path):
    straight = train(tmp_path, "straight", (2, 0))
    stopped = train(tmp_path, "stopped", (2, 15), (2, 0))
    assert straight == stopped
    files = [tmp_path / name / "checkpoints" / f"step_{NUM_STEPS}" for name in ("straight", "stopped")]
    assert len({(path / "model.safetensors").read_bytes() for path in files}) == 1
    one, two = (torch.load(path / "training" / "optimizer.pt")["state"] for path in files)
    assert one.keys() == two.keys()
    for number, entry in one.items():
        assert all(torch.equal(value, two[number][name]) for name, value in entry.items())
        assert entry["exp_avg"].ndim and type(entry["exp_avg"]) is torch.Tensor  # whole, and plain


@pytest.mark.full
def test_an_adapter_is_trained_beside_a_sharded_model(model_path, pairs_path, tmp_path):
    """Saved by two sharded ranks, resumed by one: merged model and adapter are those of a run on one process."""
    flags = [
        "--model_name_or_path", model_path, "--train_file", pairs_path, "--source_lang", "en", "--target_lang", "fr",
        "--lora_rank", "4", "--lora_target_modules", "all-linear", "--mixed_precision", "no", "--dropout", "0",
        "--cpu_threads", "1", "--num_beams", "1", "--sentences_per_update", "16", "--max_train_steps", "6",
        "--learning_rate", "1e-3", "--logging_steps", "1",
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    for name, processes, stop in (("one", 1, 0), ("two", 2, 3), ("two", 1, 0)):
        words = [TRAIN, processes, stop, log, *flags, "--output_dir", tmp_path / name]
        done = run(start_command(*words, *(["--shard_model"] if processes > 1 else []), num_processes=processes))
        assert ("stopped by SIGTERM" if stop else "trained 6 updates") in done.stdout, done.stderr[-3000:]
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    assert losses[6:] == pytest.approx(losses[:6], rel=1e-5)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, two = (load_file(tmp_path / folder / "final" / name) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        assert all((one[key] - two[key]).abs().max() < 1e-5 for key in one), name


# the ends of a run that load weights again


@pytest.mark.full
@pytest.mark.parametrize("end", ["--average_last", "--load_best_model_at_end"])
def test_the_model_that_a_run_ends_with_is_evaluated_sharded(tmp_path, rows_path, end):
    flags = [
        *FLAGS, "--dropout", "0", "--max_train_samples", "160", "--num_train_epochs", "2", "--test_file", rows_path,
        end, *(["2"] if end == "--average_last" else []),
    ]  # fmt: skip
    found = {}
    for num_processes in (1, 2):
        folder = tmp_path / str(num_processes)
        words = [*flags, "--output_dir", folder, *(["--shard_model"] if num_processes > 1 else [])]
        done = run(launch_command("train.py", *words, num_processes=num_processes))
        assert done.returncode == 0, done.stderr[-3000:]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        found[num_processes] = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(found[1]) == (4 if end == "--average_last" else 3)
    assert found[2] == pytest.approx(found[1], rel=1e-5)
