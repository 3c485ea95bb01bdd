"""main() in this process: what it returns, prints and leaves in the run folder."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

import mtloop
from mtloop.cli.commands.train import RUN_LINK, main
from mtloop.cli.main import Parser
from mtloop.cli.main import main as commands
from mtloop.cli.status import reported
from mtloop.config.parse import parse_config
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.launch import build_adamw

# What a clock says differs between two runs that are the same.
CLOCKS = ("tokens_per_s", "eval_time_s", "sentences_per_s", "train_time_s")


def flags_of(pairs_path, output_dir, **others):
    return {
        "train_file": pairs_path,
        "source_lang": "en",
        "target_lang": "fr",
        "train_tokenizer": True,
        "vocab_size": 128,
        "model_size": "tiny",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_train_steps": 4,
        "num_beams": 1,
        "val_max_target_length": 8,
        "logging_steps": 1,
        "use_cpu": True,
        "cpu_threads": 1,
        "output_dir": output_dir,
        **others,
    }


def metrics_of(folder):
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in CLOCKS} for line in lines]


def status_of(folder):
    return json.loads((folder / "status.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(pairs_path, tmp_path_factory):
    """A run folder in which mtloop.train made 4 updates; to be read only."""
    folder = tmp_path_factory.mktemp("entry") / "run"
    handler = signal.getsignal(signal.SIGINT)
    result = mtloop.train(**flags_of(pairs_path, folder))
    assert (result.path, result.status, result.exit_status) == (folder, "finished", 0)
    assert signal.getsignal(signal.SIGINT) == handler  # a notebook can interrupt its next cell
    return folder


@pytest.fixture(autouse=True)
def started_afresh(fresh_accelerate):
    """Each call of main() stands for a program of its own."""


@pytest.mark.slow
def test_main_writes_all_files(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        ".lock", "run.json", "config.yaml", "data.json", "metrics.jsonl", "status.json", "curves.png",
        "hypotheses", "checkpoints", "final", "tokenizer",
    }  # fmt: skip
    assert {path.name for path in (finished / "hypotheses").iterdir()} == {"step_4.jsonl"}
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step_4", "latest", "best"}
    final = {path.name for path in (finished / "final").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "source.spm", "config.yaml"} <= final
    assert "training" not in final


@pytest.mark.slow
def test_main_writes_metrics_status_and_data(finished):
    records = metrics_of(finished)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 4]
    assert [name in records[-1] for name in ("eval_loss", "bleu", "bleu_signature", "chrf")] == [True] * 4
    status = status_of(finished)
    assert (status["status"], status["exit_status"], status["step"]) == ("finished", 0, 4)
    assert "trained 4 updates" in status["message"] and str(finished / "final") in status["message"]
    counts = json.loads((finished / "data.json").read_text(encoding="utf-8"))["counts"]
    assert (counts["train"]["kept"], counts["valid"]["kept"]) == (54, 6)  # 60 pairs, a tenth validates


@pytest.mark.slow
def test_main_stores_numbers_per_device_as_sentences(finished):
    batch = parse_config([str(finished / "config.yaml")]).batch
    assert (batch.per_device_train_batch_size, batch.gradient_accumulation_steps) == (8, 2)
    assert batch.sentences_per_update == 16


@pytest.mark.slow
def test_main_again_reports_finished_run(finished, pairs_path, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}

    before = times()
    assert main(flags_of(pairs_path, finished)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "; nothing to do\nnext:\n" in captured.out and "this run is finished" in captured.out
    assert times() == before


@pytest.mark.slow
def test_main_again_with_languages_in_another_spelling(finished, pairs_path, capsys):
    """The same run, which is neither refused nor begun again."""
    assert main(flags_of(pairs_path, finished, source_lang="English", target_lang="fra")) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "nothing to do" in captured.out


@pytest.mark.slow
def test_main_fine_tunes_a_run(finished, pairs_path, tmp_path, capsys):
    """As the other commands: final/ of the run, verified; the run's settings record the folder that was given."""
    new = {"train_tokenizer": False, "vocab_size": None, "model_size": None, "max_train_steps": 1}
    flags = flags_of(pairs_path, tmp_path / "tuned", model_name_or_path=finished, **new)
    assert main(flags) == 0, capsys.readouterr().err
    assert parse_config([str(tmp_path / "tuned" / "config.yaml")]).model.model_name_or_path == str(finished)
    before, after = metrics_of(finished), metrics_of(tmp_path / "tuned")
    assert after[0]["step"] == 0 and after[0]["eval_loss"] == pytest.approx(before[-1]["eval_loss"], rel=1e-5)
    capsys.readouterr()
    assert main(flags) == 0 and "nothing to do" in capsys.readouterr().out
    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged, symlinks=True)
    weights = damaged / "final" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert main({**flags, "model_name_or_path": damaged, "output_dir": tmp_path / "other"}) == 2
    assert f"--model_name_or_path {damaged / 'final'}: corrupt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"report_to": "wandb"}, "--report_to wandb: wandb is not installed. Run `pip install"),
        ({"eval_engine": "ctranslate2"}, "--eval_engine ctranslate2: ctranslate2 is not installed. Run `pip install"),
        (
            {"lora_rank": 4, "model_name_or_path": "x/y", "model_size": None, "train_tokenizer": False},
            "--lora_rank: peft is not installed. Run `pip install",
        ),
    ],
)
def test_main_names_a_package_that_is_missing_before_anything_starts(
    pairs_path, tmp_path, capsys, monkeypatch, flags, problem
):
    monkeypatch.setattr("mtloop.config.settings.find_spec", lambda name: None)
    if flags.get("lora_rank"):
        flags = {**flags, "vocab_size": None}
    assert main(flags_of(pairs_path, tmp_path / "run", **flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mtloop: error: {problem}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_main_refuses_finished_folder_with_other_settings(finished, pairs_path, capsys):
    assert main(flags_of(pairs_path, finished, max_train_steps=5, logging_steps=3)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: --output_dir ")
    assert "--max_train_steps: 4 in the run folder, 5 asked" in line and "logging_steps" not in line
    assert status_of(finished)["status"] == "finished"


@pytest.mark.slow
def test_main_with_stored_config_repeats_run(finished, tmp_path):
    assert main([str(finished / "config.yaml"), "--output_dir", str(tmp_path)]) == 0
    assert metrics_of(tmp_path) == metrics_of(finished)
    hypotheses = [(folder / "hypotheses" / "step_4.jsonl").read_bytes() for folder in (tmp_path, finished)]
    assert hypotheses[0] == hypotheses[1]
    stored = [(folder / "config.yaml").read_text(encoding="utf-8").splitlines() for folder in (tmp_path, finished)]
    different = {line.split(":")[0] for pair in zip(*stored, strict=True) for line in pair if pair[0] != pair[1]}
    assert different <= {"output_dir", "recipe"}


# mistakes and failures


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train_file": "nowhere.json"}, "nowhere.json"),
        ({"target_lang": "de"}, "de"),
        ({"vocab_size": 100}, "--vocab_size: expected a multiple of 8 from 8 to 1000000 (got 100)."),
        ({"vocab_size": 8000}, "--vocab_size"),
        ({"learning_rat": 1}, "--learning_rat: no such flag, did you mean --learning_rate?"),
        ({"expect_processes": 3}, "--expect_processes: the launch started 1 process(es) (expected 3)"),
        ({"max_source_length": 5000, "config_name": "nowhere", "model_size": None}, "--config_name nowhere"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"no_such": 1}'}, "--lr_scheduler"),
    ],
)
def test_main_reports_mistake_in_one_line_with_status_2(pairs_path, tmp_path, capsys, change, words):
    folder = tmp_path / "run"
    assert main(flags_of(pairs_path, folder, **change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: ") and words in line
    if (folder / "status.json").exists():  # the folder was claimed already
        status = status_of(folder)
        assert (status["status"], status["exit_status"]) == ("failed", 2)
        assert line == f"mtloop: error: {status['message']}"
    assert not (folder / "final").exists()


@pytest.mark.slow
def test_main_continues_after_corrected_mistake(pairs_path, tmp_path, capsys):
    assert main(flags_of(pairs_path, tmp_path, target_lang="de")) == 2
    assert main(flags_of(pairs_path, tmp_path, max_train_steps=1)) == 0
    assert status_of(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_reported_prints_mistake_of_another_process_there(capsys, monkeypatch, local_rank):
    waits = []
    monkeypatch.setattr("mtloop.cli.status.time.sleep", waits.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert main({"max_train_steps": 0}) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: process 1: --max_train_steps: ")
    assert len(waits) == int(local_rank)  # the launcher ends a process whose mistake the first of its machine reports


@pytest.mark.parametrize("kind", [UserError, RunFailed])
def test_reported_leaves_shared_error_to_first_process(capsys, monkeypatch, kind):
    def work():
        error = kind("--model: missing.")
        error.is_shared = True
        raise UserError("--base: missing.") from error  # with the flag of a command

    monkeypatch.setenv("RANK", "1")
    assert reported(work) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert reported(work) == 2
    assert capsys.readouterr().err == "mtloop: error: --base: missing.\n"


@pytest.mark.slow
def test_main_of_failed_run_returns_1_and_writes_status(pairs_path, tmp_path, capsys, monkeypatch):
    # Weights of 1e30 overflow in the second update: its gradient is not finite.
    flags = flags_of(pairs_path, tmp_path, num_warmup_steps=0)
    monkeypatch.setattr(
        "mtloop.trainer.schedule.build_adamw", lambda groups, **options: build_adamw(groups, **{**options, "lr": 1e30})
    )
    assert main(flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mtloop: error: step 2: the gradient norm is nan")
    status = status_of(tmp_path)
    assert (status["status"], status["exit_status"]) == ("failed", 1)
    assert line == f"mtloop: error: {status['message']}"


def test_main_interrupted_before_training_returns_130(pairs_path, tmp_path, capsys, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtloop.trainer.setup_inputs.load_corpus", interrupted)
    assert main(flags_of(pairs_path, tmp_path)) == 130
    assert capsys.readouterr().err == "mtloop: stopped: SIGINT before the training began\n"
    assert status_of(tmp_path)["exit_status"] == 130


def test_main_links_the_run_folder_where_a_batch_script_looks(pairs_path, tmp_path, capsys, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtloop.trainer.setup_inputs.load_corpus", interrupted)
    monkeypatch.setenv(RUN_LINK, str(tmp_path / "link"))
    assert main(flags_of(pairs_path, tmp_path / "a run")) == 130
    assert (tmp_path / "link").readlink() == (tmp_path / "a run").resolve()
    capsys.readouterr()
    assert main(flags_of(pairs_path, tmp_path / "other")) == 130  # the place is taken: only a warning
    warning, stopped = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"mtloop: warning: {RUN_LINK} {tmp_path}/link: cannot be written (File exists")
    assert stopped == "mtloop: stopped: SIGINT before the training began"


@pytest.mark.slow
def test_tracking_writes_into_run_folder(pairs_path, tmp_path):
    pytest.importorskip("tensorboard")
    flags = flags_of(pairs_path, tmp_path, max_train_steps=1, report_to="tensorboard")
    assert main(flags) == 0
    assert list(tmp_path.rglob("events.out.tfevents.*"))


# whose arguments are read


@pytest.mark.parametrize(
    ("program", "is_ours"), [("train.py", True), ("/a/b/train.py", True), ("notebook.py", False), ("", False)]
)
def test_main_reads_command_line_in_train_py_only(program, is_ours, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, "--no_such_flag_at_all"])
    # Whoever does not read it goes on to the demo, which this leftover of another launch stops at once.
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main() == 2
    message = capsys.readouterr().err
    assert ("--no_such_flag_at_all: no such flag" in message) == is_ours
    assert ("WORLD_SIZE: set to 2" in message) != is_ours


def test_main_prefers_arguments_to_command_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--no_such_flag_at_all"])
    assert main(["--another_one"]) == 2
    assert "--another_one" in capsys.readouterr().err


@pytest.mark.slow
def test_main_extends_finished_run_with_allow_changed(pairs_path, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(flags_of(pairs_path, folder)) == 0
    longer = flags_of(pairs_path, folder, max_train_steps=6)
    assert main(longer) == 2
    error = capsys.readouterr().err
    assert "--max_train_steps: 4 in the run folder, 6 asked" in error
    with pytest.raises(UserError) as raised:
        mtloop.train(longer)
    assert error == f"mtloop: error: {raised.value}\n" and capsys.readouterr().err == ""
    assert main({**longer, "allow_changed": True}) == 0
    assert "continuing from step 4 with changed settings" in capsys.readouterr().out
    assert [line["step"] for line in metrics_of(folder) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert status_of(folder)["step"] == 6
    assert main(longer) == 0 and "nothing to do" in capsys.readouterr().out


def test_unknown_command_is_one_line(capsys):
    assert commands(["translat"]) == 2
    assert (
        capsys.readouterr().err
        == "mtloop: error: python -m mtloop: no such command (got 'translat'). Did you mean translate?\n"
    )
    assert commands(["fold"]) == 2 and "(got 'fold'). python -m mtloop --help" in capsys.readouterr().err
    assert commands([]) == 2 and "usage: python -m mtloop COMMAND" in capsys.readouterr().err
    assert commands(["--help"]) == 0 and "  translate   Translate files" in capsys.readouterr().out


def test_program_is_named_as_started(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mtloop"])
    assert commands(["push", "--help"]) == 0 and capsys.readouterr().out.startswith("usage: mtloop push ")


@pytest.mark.parametrize("name", ["average", "checkpoint", "corpus", "evaluate", "export", "push", "translate"])
def test_mistyped_flag_names_nearest(name, capsys):
    # "list" and "x" are what checkpoint and push cannot do without; hyphens are as good as underscores
    words = {"checkpoint": ["list", "x"], "push": ["x"], "export": ["-o", "x", "--format", "ctranslate2"]}.get(name, [])
    given = {"checkpoint": "--save-totel-limit", "push": "--hub-stratgy"}.get(name, "--num-beems")
    model = ["--model", "x"] if name in ("evaluate", "export", "translate") else []
    assert commands([name, *words, *model, given, "3"]) == 2
    nearest = {"checkpoint": "--save_total_limit", "push": "--hub_strategy"}.get(name, "--num_beams")
    assert (
        capsys.readouterr().err
        == f"mtloop: error: {given.replace('-', '_').replace('__', '--', 1)}: no such flag, did you mean {nearest}?\n"
    )


def test_help_lists_first_line_of_each_command(capsys):
    commands(["--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    folder = Path(sys.modules["mtloop"].__file__).parent / "cli" / "commands"
    assert listed == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def test_parser_writes_only_flags_with_underscores():
    parser = Parser()
    for flag in ("--model", "--max_source_length"):
        parser.add_argument(flag)
    parser.add_argument("files", nargs="*")
    words = ["a--b-c", "--max-source-length=x--y-z", "--model", "hub/models--A-B--c-d", "d", "--", "--not-a-flag"]
    given = parser.parse(words)
    assert (given.max_source_length, given.model) == ("x--y-z", "hub/models--A-B--c-d")
    assert given.files == ["a--b-c", "d", "--not-a-flag"]


def test_broken_pipe_elsewhere_is_no_closed_output(monkeypatch):
    def broken(given):
        raise BrokenPipeError

    monkeypatch.setattr("mtloop.cli.commands.push.run", broken)
    with pytest.raises(BrokenPipeError):
        commands(["push", "x"])


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["translate", "--text", "caf\udce9", "--model", "m"], "--text"),
        (["translate", "--text=caf\udce9", "--model", "m"], "--text"),
        (["corpus", "caf\udce9.tsv"], "argument"),
        (["train", "--source_prefix", "caf\udce9"], "--source_prefix"),
    ],
)
def test_commands_refuse_bytes_that_are_not_utf8(words, flag, capsys):
    assert commands(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mtloop: error: {flag}: not U")
    assert "caf\\udce9" in line and line.endswith("Give it in UTF-8.")
