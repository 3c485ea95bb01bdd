"""From a configuration to a run: the folder is claimed, numbers are resolved once, wrong ones are refused."""

import json
import socket
import threading
import time

import numpy as np
import pytest

from mtloop.config.environment import HardwareConfig
from mtloop.config.parse import config_from, parse_config
from mtloop.config.settings import changed, differences, resolve
from mtloop.errors import RunFailed, UserError
from mtloop.runtime.ranks import Runtime
from mtloop.tokenization.encoding import Encoded
from mtloop.trainer.resume import await_word, claim_folder
from mtloop.trainer.setup import resolve_budget, start_trackers
from mtloop.trainer.setup_data import drop_long


def config_of(**flags):
    given = {
        "train_file": "a.json",
        "source_lang": "en",
        "target_lang": "fr",
        "model_size": "tiny",
        "tokenizer_name": "x",
    }
    return resolve(config_from({**given, **flags}))


# the folder


def test_a_new_folder_is_made_and_swept_and_an_old_one_recognised(runtime, tmp_path):
    config = config_of(output_dir=tmp_path / "deep" / "run")
    folder, stored = claim_folder(config, runtime)
    assert stored is None and folder.checkpoints_dir.is_dir()
    folder.write_config(config)
    leftovers = [folder.path / ".tmp-final-1", folder.checkpoints_dir / ".trash-step_1-1"]
    for path in leftovers:
        path.mkdir()
    leftovers.append(folder.path / ".tmp-probe-1")
    leftovers[-1].write_text("")
    _, stored = claim_folder(config, runtime)
    assert stored is not None and stored.optimizer == config.optimizer
    assert not any(path.exists() for path in leftovers)


def test_a_folder_of_another_run_is_refused_with_what_differs(runtime, tmp_path):
    config = config_of(output_dir=tmp_path)
    claim_folder(config, runtime)[0].write_config(config)
    with pytest.raises(UserError) as caught:
        claim_folder(changed(config, seed=43, learning_rate=0.5, logging_steps=7), runtime)
    message = str(caught.value)
    assert "--seed: 42 in the run folder, 43 asked" in message and "--learning_rate: 0.001" in message
    assert "logging_steps" not in message and "\n" not in message  # that may change


def test_a_folder_that_cannot_be_made_is_refused(runtime, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output_dir .*file/run: cannot be written"):
        claim_folder(config_of(output_dir=tmp_path / "file" / "run"), runtime)


@pytest.mark.slow
def test_what_another_process_writes_may_be_seen_late(tmp_path):
    """As over a network: the file is not there at first, then empty."""
    path = tmp_path / "probe"

    def write():
        path.write_text("")
        time.sleep(0.2)
        path.write_text("word")

    writer = threading.Timer(0.2, write)
    writer.start()
    await_word(path, "word", rank=1, wait_s=30)
    writer.join()


@pytest.mark.parametrize("found", [None, "another run's"])
@pytest.mark.slow
def test_a_folder_that_a_process_does_not_share_is_refused(tmp_path, found):
    if found is not None:
        (tmp_path / "probe").write_text(found)
    with pytest.raises(UserError) as caught:
        await_word(tmp_path / "probe", "word", rank=1, wait_s=0.2)
    message = str(caught.value)
    assert message.startswith(f"--output_dir {tmp_path}: process 1 on {socket.gethostname()} cannot read the files")
    assert message.endswith("Give the absolute path of a folder that all machines share.") and "\n" not in message


# the budget


@pytest.mark.parametrize(
    ("flags", "num_ranks", "expected"),
    [
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}, 4, 64),  # 8 x 2 x 4
        ({"per_device_train_batch_size": 8}, 4, 32),
        ({"sentences_per_update": 10}, 4, 10),
        ({"tokens_per_update": 500}, 4, None),
    ],
)
def test_numbers_per_device_become_sentences_of_an_update(flags, num_ranks, expected):
    assert resolve_budget(config_of(**flags), None, num_ranks=num_ranks).batch.sentences_per_update == expected


def test_a_resume_on_other_processes_keeps_what_was_settled():
    asked = config_of(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    stored = changed(resolve_budget(asked, None, num_ranks=4), num_warmup_steps=11, num_beams=6)
    resolved = resolve_budget(asked, stored, num_ranks=1)
    assert resolved.batch.sentences_per_update == 64
    assert (resolved.optimizer.num_warmup_steps, resolved.evaluation.num_beams) == (11, 6)


@pytest.mark.parametrize(
    ("started", "asked"),
    [
        ({"source_lang": "en", "target_lang": "fr"}, {"source_lang": "eng", "target_lang": "French"}),
        ({"pairs": "en-fr, fr-en"}, {"pairs": "English-fr_XX,fra-eng"}),
        ({"source_key": "en"}, {"source_key": "eng_Latn"}),
    ],
)
def test_languages_in_another_spelling_are_those_of_the_start(started, asked):
    none = {"source_lang": None, "target_lang": None} if "pairs" in started else {}
    stored = config_of(**none, **started)
    assert differences(stored, config_of(**none, **asked)) == []
    assert resolve_budget(config_of(**none, **asked), stored, num_ranks=1).data == stored.data
    other = {**asked, **({"pairs": "fr-en,en-fr"} if "pairs" in started else {next(iter(asked)): "de"})}
    (line,) = differences(stored, config_of(**none, **other))
    assert line.endswith("asked") and str(next(iter(started.values()))) in line


def test_a_stored_configuration_starts_the_same_run_on_other_processes():
    asked = config_of(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    stored = resolve_budget(asked, None, num_ranks=4)
    # In a new folder nothing is stored: the file alone says 64, whatever the number of processes is now.
    assert resolve_budget(stored, None, num_ranks=2).batch.sentences_per_update == 64


# the run


def test_what_is_settled_is_stored_and_the_same_flags_build_the_same_run(new_run):
    flags = {
        "sentences_per_update": None,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_beams": None,
    }
    run = new_run(**flags, max_train_steps=50)
    stored = parse_config([str(run.folder.config_path)])
    # 8 x 2 pairs, a tenth of 50 updates of warm-up from scratch, and 4 beams as nobody says otherwise.
    assert stored.batch.sentences_per_update == 16
    assert stored.optimizer.num_warmup_steps == 5
    assert stored.evaluation.num_beams == run.model.generation_config.num_beams == 4
    assert run.model.generation_config.max_length == 12
    assert (run.loader.updates_per_epoch, run.total_steps) == (4, 50)  # 54 pairs in sixteens
    assert run.wrapped_model.training
    text = run.folder.config_path.read_text(encoding="utf-8")
    again = new_run(**flags, max_train_steps=50)
    assert run.folder.config_path.read_text(encoding="utf-8") == text
    assert again.config.batch.sentences_per_update == 16
    weights = again.model.state_dict()
    assert all((weight == weights[name]).all() for name, weight in run.model.state_dict().items())


@pytest.mark.slow
def test_other_data_under_the_same_name_is_refused(new_run, tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"en": f"the file {i}", "fr": f"le fichier {i}"}) for i in range(20)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    new_run(train_file=path)
    new_run(train_file=path)  # unchanged: the same run
    path.write_text("\n".join(reversed(lines)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^--output_dir .*: holds a run on other data"):
        new_run(train_file=path)


def test_the_configuration_is_written_last(new_run, tmp_path):
    # A folder is a run's once config.yaml is there: a data report that came after it could be missing for ever.
    (tmp_path / "run" / "data.json").mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text('{"run_id": "a"}')  # or it would be somebody else's folder
    with pytest.raises(RunFailed, match=r"data\.json: cannot be written"):
        new_run()
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_long_pairs_are_dropped_and_counted(new_run):
    kept_all, dropped = new_run("all", max_target_length=25), new_run("dropped", max_target_length=25, drop_long=True)
    is_long = [
        len(kept_all.tokenizer(text_target=row["target"])["input_ids"]) > 25
        or len(kept_all.tokenizer(row["source"])["input_ids"]) > 128
        for row in kept_all.train_rows
    ]
    assert 0 < sum(is_long) < 54 == len(kept_all.train_rows)
    expected = [row["index"] for row, long in zip(kept_all.train_rows, is_long, strict=True) if not long]
    assert dropped.train_rows["index"][:] == expected
    assert len(dropped.loader.encoded) == len(dropped.loader.target_lengths) == len(expected)
    counts = json.loads(dropped.folder.data_path.read_text(encoding="utf-8"))["counts"]["train"]
    assert counts["dropped"]["too_long"] == sum(is_long) and counts["kept"] == len(expected)
    # Otherwise they are cut.
    assert kept_all.loader.target_lengths.max() == 25


def test_to_drop_every_pair_is_refused(encoded_sample):
    encoded = Encoded(
        rows=encoded_sample.rows,
        source_lengths=encoded_sample.source_lengths,
        target_lengths=encoded_sample.target_lengths,
        is_long=np.ones(len(encoded_sample.rows), dtype=bool),
        num_long_sources=1,
        num_long_targets=0,
    )
    with pytest.raises(UserError, match=r"^--drop_long: every row"):
        drop_long(encoded_sample.rows, encoded, {"counts": {"train": {}}}, is_wanted=True)
    assert drop_long(encoded_sample.rows, encoded, {}, is_wanted=False) == (encoded_sample.rows, encoded)


# trackers


def test_a_tracker_that_is_not_installed_is_named(fresh_accelerate, tmp_path, capsys, recwarn):
    from accelerate.utils import is_aim_available

    if is_aim_available():
        pytest.skip("aim is installed here")
    runtime = Runtime(HardwareConfig(use_cpu=True, cpu_threads=1), project_dir=str(tmp_path), report_to="aim")
    assert not start_trackers(config_of(report_to="aim"), runtime)
    assert "tracking is off: no tracker of --report_to aim is installed" in capsys.readouterr().out


def test_without_the_flag_there_is_no_tracker(runtime, capsys):
    assert not start_trackers(config_of(), runtime)
    assert capsys.readouterr().out == ""


# several pairs


def test_a_model_that_cannot_tell_pairs_apart_is_refused(new_run):
    flags = {"source_lang": None, "target_lang": None}
    with pytest.raises(UserError, match="--pairs en-fr,fr-en: this marian model has one target language"):
        new_run(**flags, pairs="en-fr,fr-en")
    many_to_one = new_run("one", **flags, pairs="en-fr,English-fr")  # one target needs no telling
    assert len(many_to_one.loader.encoded) == 2 * 54 and many_to_one.config.data.source_prefix is None


@pytest.mark.slow
def test_pairs_share_the_split_and_are_counted_each(new_run):
    flags = {"tokenizer_name": None, "train_tokenizer": True, "vocab_size": 160}
    run = new_run(**flags, source_lang=None, target_lang=None, pairs="en-fr,fr-en")
    assert [(part.name, part.rows) for part in run.valid.parts] == [("en-fr", slice(0, 6)), ("fr-en", slice(6, 12))]
    rows = run.valid.rows
    assert rows["source"][:6] == rows["target"][6:] and rows["index"][:6] == rows["index"][6:]
    assert not {*rows["source"]} & {*run.train_rows["source"]}  # no sentence is trained in either direction
    report = run.data_report
    assert report["counts"]["train"]["kept"] == 108 and report["pairs"]["fr-en"]["counts"]["train"]["kept"] == 54
    first = run.tokenizer.convert_ids_to_tokens(run.valid.encoded[0]["input_ids"][0])
    last = run.tokenizer.convert_ids_to_tokens(run.valid.encoded[11]["input_ids"][0])
    assert (first, last) == (">>fr<<", ">>en<<")
    few = run.valid.first(2)
    assert few.rows["source"][:] == rows["source"][:2] + rows["source"][6:8]
    assert [part.rows for part in few.parts] == [slice(0, 2), slice(2, 4)]


def test_a_prefix_that_the_model_needs_is_settled_and_may_be_left_to_it_at_a_resume(new_run, tmp_path):
    config = config_of(tokenizer_name=None, train_tokenizer=True)
    assert differences(changed(config, source_prefix=">>fr<< "), config) == []
    assert "--source_prefix" in differences(changed(config, source_prefix="a "), changed(config, source_prefix="b "))[0]
