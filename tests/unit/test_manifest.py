"""Manifests of checkpoints and of final/, and how the commands open a folder by them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mtloop.checkpoint import manifest
from mtloop.checkpoint.averaging import copy_listed
from mtloop.checkpoint.listing import final_corruption, final_record, find_corruption, open_folder
from mtloop.checkpoint.manifest import (
    FINAL_MANIFEST_NAME,
    MANIFEST_NAME,
    CorruptCheckpoint,
    HashMemory,
    check_files,
    read_manifest,
    write_manifest,
)
from mtloop.errors import UserError
from tests.support.corruption import FOREIGN, WAYS, corrupt, files_in
from tests.support.hub_runs import hashes, make_run


@pytest.fixture
def run_folder(tmp_path):
    """A finished run with the checkpoints step_10 to step_30, whose files are small and no models."""
    return make_run(tmp_path / "run", is_finished=True)


def places(run_folder):
    return {"checkpoint": run_folder.checkpoints_dir / "step_30", "final": run_folder.final_dir}


@pytest.mark.parametrize("place", [pytest.param("checkpoint", marks=pytest.mark.slow), "final"])
def test_open_folder_refuses_every_corrupt_file(run_folder, place):
    folder = places(run_folder)[place]
    whole, undisturbed = folder.with_name("whole"), hashes(folder)
    shutil.copytree(folder, whole)
    for name in files_in(whole):
        for way in WAYS:
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            corrupt(folder, name, way, other=run_folder.checkpoints_dir / "step_20", seed=len(name))
            changed = [file for file, value in undisturbed.items() if hashes(folder).get(file) != value]
            if changed == [FINAL_MANIFEST_NAME] and way == "delete":  # as that of an earlier version
                assert open_folder(str(folder)) == str(folder)
                continue
            if not changed:
                assert hashes(Path(open_folder(str(folder)))) == undisturbed
                continue
            with pytest.raises(UserError, match=rf"^--model_name_or_path {folder}: corrupt \(.*\)\. Restore it, "):
                open_folder(str(folder))
            assert open_folder(str(folder), no_verify=True) == str(folder)


@pytest.mark.parametrize("place", ["checkpoint", "final"])
def test_open_folder_leaves_out_what_the_manifest_does_not_list(run_folder, place, capsys):
    folder = places(run_folder)[place]
    undisturbed = hashes(folder)
    for name in FOREIGN:
        (folder / name).parent.mkdir(exist_ok=True)
    if place == "final":
        (folder / "training").rmdir()
    for name in FOREIGN:
        if (folder / name).parent.is_dir():
            (folder / name).write_text("foreign")
    opened = open_folder(str(folder))
    assert opened != str(folder) and hashes(Path(opened)) == undisturbed
    err = capsys.readouterr().err
    assert err.startswith(f"mtloop: warning: {folder}: ignored, not listed in its manifest: adapter_config.json, ")
    assert err.count("\n") == 1
    assert open_folder(str(folder)) == opened and not capsys.readouterr().err  # as for the tokenizer and the model
    copy_listed(folder, folder.with_name("copy"), left_out=("training",))
    own = (MANIFEST_NAME, FINAL_MANIFEST_NAME)
    listed = {name for name in undisturbed if name not in own and not name.startswith("training/")}
    assert set(files_in(folder.with_name("copy"))) == listed


def test_open_folder_takes_other_folders_as_they_are(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    assert open_folder(str(tmp_path)) == str(tmp_path)
    assert open_folder("team/model@v1") == "team/model@v1"


def test_final_corruption(run_folder):
    assert final_corruption(run_folder) == "" and final_record(run_folder)["step"] == 30
    (run_folder.final_dir / "config.json").write_text("{}")
    assert final_corruption(run_folder).startswith("config.json has ")
    (run_folder.final_dir / FINAL_MANIFEST_NAME).unlink()
    assert final_corruption(run_folder) == f"{FINAL_MANIFEST_NAME} is missing"
    # A run of an earlier version has an entry in run.json.
    run_folder.update_record(final={"step": 30, "manifest": "a" * 64})
    assert final_corruption(run_folder) == "" and final_record(run_folder) == {"step": 30, "manifest": "a" * 64}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": -1}, "step: expected a whole number of at least 0"),
        ({"cursor": "3"}, "cursor: expected a whole number of at least 0"),
        ({"files": []}, r"files: expected an object \(got \[\]\)"),
        ({"files": {"../other": {"size": 1, "sha256": ""}}}, "'../other' is outside of the folder"),
        ({"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}, "'/etc/passwd' is outside of the folder"),
        ({"files": {"config.json": 3}}, r"files.config.json: expected an object \(got 3\)"),
        ({"files": {"config.json": {"size": 1}}}, "files.config.json.sha256 is missing"),
        ({"step": 20}, "of step 20, not of step_30"),
    ],
)
def test_read_manifest_refuses_forged_ones(run_folder, change, reason):
    folder = run_folder.checkpoints_dir / "step_30"
    write_manifest(folder, {**read_manifest(folder), **change})  # with the right hash
    with pytest.raises(CorruptCheckpoint, match=reason):
        read_manifest(folder)
    assert re.search(reason, find_corruption(folder))


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "null", '{"sha256": 1e999}', '{"files": {}}', "\x00", "\ud800"])
def test_read_manifest_refuses_other_json(run_folder, text):
    folder = run_folder.checkpoints_dir / "step_30"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CorruptCheckpoint, match=rf"^{MANIFEST_NAME} "):
        read_manifest(folder)


def test_hash_memory_reads_an_unchanged_file_once(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "SETTLED_S", -1.0)
    file, read = tmp_path / "file", []
    file.write_text("text")
    monkeypatch.setattr(
        manifest, "hash_file", lambda path, hash_file=manifest.hash_file: read.append(path) or hash_file(path)
    )
    for _ in range(2):
        memory = HashMemory(tmp_path / "folder" / "hashes.json")
        expected = memory.hash_file(file)
        memory.save()
    assert read == [file] and expected["size"] == 4
    file.write_text("next")  # of the same size and with the old times
    os.utime(file, ns=(0, 0))
    changed = HashMemory(tmp_path / "folder" / "hashes.json").hash_file(file)
    assert read == [file, file] and changed["sha256"] != expected["sha256"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[" * 100_000])
def test_hash_memory_ignores_a_file_that_is_none(tmp_path, text):
    (tmp_path / "hashes.json").write_text(text)
    (tmp_path / "file").write_text("text")
    assert HashMemory(tmp_path / "hashes.json").hash_file(tmp_path / "file")["size"] == 4


def test_check_files_names_a_changed_final(run_folder):
    assert json.loads((run_folder.final_dir / FINAL_MANIFEST_NAME).read_text()) == check_files(run_folder.final_dir)
    (run_folder.final_dir / "config.json").unlink()
    with pytest.raises(CorruptCheckpoint, match=r"^config\.json is missing$"):
        check_files(run_folder.final_dir)
