"""A user's mistake: one line that names the flag or the place and the remedy, status 2, no traceback, nothing lost."""

import json

import pytest

from tests.support.launch import PYTHON, launch_command, run

pytestmark = pytest.mark.e2e

SCRATCH = ["--train_tokenizer", "--vocab_size", "64", "--model_size", "tiny", "--max_train_steps", "1"]
LANGUAGES = ["--source_lang", "en", "--target_lang", "fr"]


def pairs(number):
    return [{"translation": {"en": f"file {i} of {i + 1}", "fr": f"fichier {i} sur {i + 1}"}} for i in range(number)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(tmp_path, *flags, **extra):
    """Run train.py with flags that must be refused; return its one line."""
    done = run([PYTHON, "train.py", *map(str, flags), "--output_dir", str(tmp_path / "run")], **extra)
    assert done.returncode == 2, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("mtloop: error: ")
    return lines[0]


def test_a_missing_file(tmp_path):
    line = refused(tmp_path, *SCRATCH, *LANGUAGES, "--train_file", tmp_path / "absent.jsonl")
    assert "--train_file" in line and "absent.jsonl" in line


def test_a_broken_line_is_named_with_its_number(tmp_path):
    path = write(tmp_path / "pairs.jsonl", pairs(40))
    lines = path.read_text().splitlines()
    lines[16] = lines[16][:-3]
    path.write_text("\n".join(lines) + "\n")
    assert f"{path}:17" in refused(tmp_path, *SCRATCH, *LANGUAGES, "--train_file", path)


def test_no_such_language_lists_those_there(tmp_path):
    path = write(tmp_path / "pairs.jsonl", pairs(40))
    line = refused(tmp_path, *SCRATCH, "--source_lang", "en", "--target_lang", "de", "--train_file", path)
    assert "de" in line and "fr" in line


def test_no_such_column_lists_those_there(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("question,answer\n" + "what,that\n" * 40)
    flags = ["--source_column", "question", "--target_column", "reply"]
    line = refused(tmp_path, *SCRATCH, *flags, "--train_file", path)
    assert "reply" in line and "answer" in line


def test_an_empty_split_says_what_was_dropped(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [{"translation": {"en": " ", "fr": "x"}}] * 40)
    assert "empty" in refused(tmp_path, *SCRATCH, *LANGUAGES, "--train_file", path)


def test_two_text_files_of_different_lengths(tmp_path):
    english, french = tmp_path / "corpus.en", tmp_path / "corpus.fr"
    english.write_text("a\n" * 40)
    french.write_text("b\n" * 39)
    line = refused(tmp_path, *SCRATCH, *LANGUAGES, "--train_file", english, french)
    assert "40" in line and "39" in line


def test_a_model_folder_without_weights(tmp_path, demo_run):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (demo_run.folder / "final").iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    line = refused(tmp_path, "--model_name_or_path", folder, "--dataset_name", "demo", *LANGUAGES)
    assert "--model_name_or_path" in line and str(folder) in line


def test_a_tokenizer_of_another_vocabulary(tmp_path, demo_run, marian_tokenizer):
    flags = ["--model_name_or_path", demo_run.folder / "final", "--tokenizer_name", marian_tokenizer.name_or_path]
    line = refused(tmp_path, *flags, "--dataset_name", "demo", *LANGUAGES)
    assert "--tokenizer_name" in line and "vocabularies disagree" in line


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (
            ["--model_name_or_path", "Helsinki-NLP/opus-mt-en-fr", "--dataset_name", "demo"],
            "Helsinki-NLP/opus-mt-en-fr",
        ),
        (["--dataset_name", "someone/corpus", *SCRATCH], "someone/corpus"),
        (["--dataset_name", "kde4", *SCRATCH], "kde4"),
    ],
)
def test_a_hub_name_without_network_says_what_to_do(tmp_path, flags, name):
    line = refused(tmp_path, *flags, *LANGUAGES)
    assert name in line and ("download" in line or "--train_file" in line)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file stands where the folder should be")
    assert "--output_dir" in refused(tmp_path, "demo")
    assert (tmp_path / "run").read_text() == "a file stands where the folder should be"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learnin_rate", "1"], ["--learnin_rate", "--learning_rate"]),
        (["--num_beams", "many"], ["--num_beams", "many"]),
        (["--num_beam", "3"], ["--num_beam", "--num_beams"]),
        (["--lr_scheduler_type", "reduce_lr_on_plateau"], ["reduce_lr_on_plateau"]),
        (["--expect_processes", "2"], ["--expect_processes: ", "expected 2"]),
        (["--vocab_size", "8000"], ["--vocab_size"]),
        (
            ["--max_source_length", "64", "--resume_from_checkpoint", "epoch_7"],
            ["--resume_from_checkpoint: ", "(got epoch_7)"],
        ),
        (["--vocab_size", "10000000000"], ["--vocab_size", "multiple of 8"]),
        (["--learning_rate", "-1e-3"], ["--learning_rate", "above 0"]),
        (["--sentences_per_update", "32", "--per_device_train_batch_size", "8"], ["Leave one out"]),
        (["nosuchrecipe"], ["nosuchrecipe", "kde4-en-fr"]),
    ],
)
def test_wrong_flags(tmp_path, flags, words):
    line = refused(tmp_path, *flags)
    assert all(word in line for word in words), line


def test_a_folder_given_as_a_file(tmp_path):
    line = refused(tmp_path, *SCRATCH, *LANGUAGES, "--train_file", tmp_path)
    assert "--train_file: expected a file, or a folder of catalogues" in line and f"(got {tmp_path})" in line


def test_data_given_as_a_recipe(tmp_path):
    path = write(tmp_path / "pairs.jsonl", pairs(40))
    assert f"--train_file {path}" in refused(tmp_path, path)


def test_a_recipe_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dataset_name: demo\nsource_lang: en\ntarget_lang: fr\nlearning_rat: 3\n")
    line = refused(tmp_path, path)
    assert f"{path}:4" in line and "learning_rate" in line


def test_two_processes_print_one_line(tmp_path):
    """An error that only the data shows, after the processes have met: all leave, main alone speaks."""
    path = write(tmp_path / "pairs.jsonl", pairs(40))
    flags = [
        *SCRATCH,
        "--source_lang",
        "en",
        "--target_lang",
        "de",
        "--train_file",
        path,
        "--output_dir",
        tmp_path / "run",
    ]
    done = run(launch_command("train.py", *flags, num_processes=2), timeout_s=120)
    assert done.returncode == 1  # the launcher's own translation
    assert done.stderr.count("mtloop: error:") == 1
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["exit_status"]) == ("failed", 2)


def test_processes_that_accelerate_does_not_join_are_refused(tmp_path):
    assert "WORLD_SIZE" in refused(tmp_path, "demo", WORLD_SIZE="2", RANK="0")


@pytest.mark.parametrize("what", ["fsdp", "deepspeed"])
def test_sharding_asked_for_on_a_cpu(tmp_path, what):
    line = refused(tmp_path, "demo", **{f"ACCELERATE_USE_{what.upper()}": "true"})
    assert what in line and "multi_cpu.yaml" in line and "--shard_model" in line
