"""Test averages and interpolation of weights, and the choice of checkpoints."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from mtloop import atomic
from mtloop.atomic import read_json_lines
from mtloop.checkpoint import averaging
from mtloop.checkpoint.averaging import average_into, interpolate_into
from mtloop.checkpoint.listing import choose_best, choose_last, choose_named, final_record, list_checkpoints
from mtloop.checkpoint.manifest import FINAL_MANIFEST_NAME, hash_files, write_manifest
from mtloop.errors import RunFailed, UserError
from mtloop.hub.card import write_card
from mtloop.hub.parts import Target, files_of, final_part
from mtloop.hub.upload import Lost, additions
from mtloop.trainer.loop import train
from tests.support.commands import command
from tests.support.hub_runs import evaluation, hashes, make_run, write_checkpoint, write_hypotheses

evaluate = command("evaluate")
main = command("average")

TARGET = Target(repo_id="team/en-fr")


def moved(model, seed, size):
    """A copy of a model with noise on every weight."""
    torch.manual_seed(seed)
    copy = type(model)(deepcopy(model.config))
    copy.load_state_dict(model.state_dict())
    copy.generation_config = deepcopy(model.generation_config)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += size * torch.randn_like(parameter)
    copy.tie_weights()
    return copy.eval()


def save(model, tokenizer, path, **options):
    model.save_pretrained(path, **options)
    tokenizer.save_pretrained(path)
    return path


def weights_of(path):
    return {name: weight for file in sorted(path.glob("*.safetensors")) for name, weight in load_file(file).items()}


@pytest.fixture(scope="module")
def three(tiny_model, marian_tokenizer, tmp_path_factory):
    """Three folders of nearly the same model, the last one tiny_model itself."""
    folder = tmp_path_factory.mktemp("three")
    models = [moved(tiny_model, 1, 0.02), moved(tiny_model, 2, 0.01), tiny_model]
    return [save(model, marian_tokenizer, folder / name) for model, name in zip(models, "abc", strict=True)]


# the mean


@pytest.mark.parametrize("max_shard_size", ["200KB", pytest.param("1GB", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_average_into_is_the_mean_and_loads(three, tiny_model, marian_tokenizer, tmp_path, max_shard_size):
    last = save(tiny_model, marian_tokenizer, tmp_path / "last", max_shard_size=max_shard_size)
    assert (len(list(last.glob("*.safetensors"))) > 1) == (max_shard_size == "200KB")
    average_into(tmp_path / "out", [*three[:2], last])
    found, parts = weights_of(tmp_path / "out"), [weights_of(path) for path in (*three[:2], last)]
    assert found.keys() == parts[0].keys()
    for name, weight in found.items():
        mean = torch.stack([part[name].double() for part in parts]).mean(dim=0)
        assert torch.equal(weight, mean.float()), name
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in found.items())
    assert model.generation_config.max_length == tiny_model.generation_config.max_length
    told = json.loads((tmp_path / "out" / "averaged.json").read_text())
    assert [one["name"] for one in told["average_of"]] == ["a", "b", "last"]
    # Everything else is the last one's.
    others = {name: digest for name, digest in hashes(last).items() if not name.endswith(".safetensors")}
    assert others.items() <= hashes(tmp_path / "out").items()


def test_average_into_keeps_dtypes_and_other_weights(tmp_path):
    halves = [1.0, 2.0, 2.0]  # the mean, 1.6667, is 1.6641 in bfloat16: 1 + 85/128
    for number, value in enumerate(halves):
        (tmp_path / str(number)).mkdir()
        tensors = {
            "half": torch.full((2,), value, dtype=torch.bfloat16),
            "same": torch.tensor([0.1, 1e-30]),
            "count": torch.tensor([number, number + 1]),
            "mask": torch.tensor([number == 2]),
        }
        save_file(tensors, tmp_path / str(number) / "model.safetensors", metadata={"format": "pt"})
    average_into(tmp_path / "out", [tmp_path / str(number) for number in range(3)])
    found = weights_of(tmp_path / "out")
    assert found["half"].dtype == torch.bfloat16 and found["half"].tolist() == [1 + 85 / 128] * 2
    assert torch.equal(found["same"], torch.tensor([0.1, 1e-30]))  # three times the same is the same
    assert found["count"].tolist() == [2, 3] and found["mask"].tolist() == [True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("b"), r"one: another model than two \(b is in .*two and not in .*one"),
        (lambda w: w.update(c=torch.ones(1)), r"one: another model than two \(c is in .*one and not in .*two"),
        (
            lambda w: w.update(b=torch.ones(3, 1)),
            r"one: .* \(b is \[3, 1\], expected \[2, 1\]\)",
        ),
        (lambda w: w.clear(), r"one: another model than two \(a is in .*two and not in .*one"),
    ],
)
def test_average_into_refuses_another_model(tmp_path, change, reason):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tensors = {"a": torch.ones(2), "b": torch.ones(2, 1)}
        if name == "one":
            change(tensors)
        save_file(tensors, tmp_path / name / "model.safetensors")
    with pytest.raises(UserError, match=reason):
        average_into(tmp_path / "out", [tmp_path / "one", tmp_path / "two"])


def test_average_into_refuses_weights_that_are_not_finite(tmp_path):
    for name, value in (("a", 1.0), ("b", float("nan")), ("c", 3.0)):
        (tmp_path / name).mkdir()
        weights = {"good": torch.ones(2), "bad": torch.tensor([1.0, value]), "whole": torch.tensor([1])}
        save_file(weights, tmp_path / name / "model.safetensors")
    with pytest.raises(UserError, match=r"b: bad is not finite\. Leave this checkpoint out"):
        average_into(tmp_path / "out", [tmp_path / name for name in "abc"])
    assert not list((tmp_path / "out").glob("*.safetensors"))
    average_into(tmp_path / "out2", [tmp_path / "a", tmp_path / "c"])
    assert weights_of(tmp_path / "out2")["bad"].tolist() == [1, 2]


def test_average_into_refuses_missing_or_invalid_weights(three, tmp_path):
    shutil.copytree(three[0], tmp_path / "half")
    file = tmp_path / "half" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="half: the weights cannot be read"):
        average_into(tmp_path / "out", [tmp_path / "half", three[2]])
    file.unlink()
    with pytest.raises(UserError, match="half: no weights found"):
        average_into(tmp_path / "out", [tmp_path / "half", three[2]])


# the line


def test_interpolate_into_ends_and_middle(tiny_model, three):
    base = AutoModelForSeq2SeqLM.from_pretrained(three[0])
    ends, target = (base.state_dict(), tiny_model.state_dict()), moved(tiny_model, 3, 1.0)
    for weight in (0.0, 1.0):
        interpolate_into(target, base, tiny_model, weight)
        assert all(torch.equal(tensor, ends[int(weight)][name]) for name, tensor in target.state_dict().items())
    interpolate_into(target, base, tiny_model, 0.25)
    for name, tensor in target.state_dict().items():
        exact = 0.75 * ends[0][name].double() + 0.25 * ends[1][name].double()
        assert torch.equal(tensor, exact.float()), name
    # A model may become a point of its own line: tied weights are taken once.
    itself = moved(tiny_model, 4, 0.0)
    interpolate_into(itself, base, itself, 0.25)
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in itself.state_dict().items())


# the choice


def test_choose_last_and_best(tmp_path):
    folder = make_run(tmp_path, epochs=4)
    lines = [evaluation(epoch, bleu=bleu) for epoch, bleu in ((1, 30.0), (2, 50.0), (3, 50.0), (4, 10.0), (9, 99.0))]
    lines += [{"split": "test", **evaluation(4, bleu=98.0)}, {**evaluation(1, bleu=0.0), "bleu": None}]
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def names(paths):
        return [path.name for path in paths]

    assert names(choose_last(folder, 2)) == ["step_30", "step_40"]
    between = write_checkpoint(folder, 3, cursor=5)  # of --save_steps: ends no epoch
    assert names(choose_last(folder, 2)) == ["step_30", "step_40"]
    assert names(choose_last(folder, 5)) == ["step_10", "step_20", "step_30", "step_35", "step_40"]
    shutil.rmtree(between)
    assert names(choose_best(folder, 2, "bleu", is_greater_better=True)) == ["step_20", "step_30"]  # step_90 is gone
    lines.insert(0, evaluation(4, bleu=50.0))  # an earlier try at the step: the last line counts
    lines.append(evaluation(1, bleu=50.0))
    folder.metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert names(choose_best(folder, 2, "bleu", is_greater_better=True)) == [
        "step_20",
        "step_30",
    ]  # of equal ones the later
    assert names(choose_best(folder, 2, "eval_loss", is_greater_better=False)) == [
        "step_30",
        "step_40",
    ]  # 5 - epoch: lower is better
    assert names(choose_best(folder, 4, "chrf", is_greater_better=True)) == ["step_10", "step_20", "step_30", "step_40"]
    with pytest.raises(UserError, match=r"--best: 4 evaluated .*: step_10, .* \(got 5\). Give at most 4"):
        choose_best(folder, 5, "bleu", is_greater_better=True)
    folder.metrics.path.unlink()
    with pytest.raises(UserError, match=r"--best: 0 .*: none \(got 2\). An average needs two or more"):
        choose_best(folder, 2, "bleu", is_greater_better=True)
    with pytest.raises(UserError, match=r"--last: 4 checkpoints in .* \(got 5\). Give at most 4"):
        choose_last(folder, 5)


def test_choose_named_sorts_and_refuses(tmp_path, model_path):
    folder = make_run(tmp_path / "run", epochs=2)
    steps = [folder.checkpoints_dir / f"step_{step}" for step in (10, 20)]
    assert choose_named(folder, ["epoch_2", "step_10"]) == steps
    assert choose_named(None, [str(steps[1]), str(steps[0])]) == steps
    assert choose_named(folder, ["step_10", str(model_path)]) == [model_path, steps[0]]
    for names, reason in (
        (["step_10", "epoch_1"], r"--checkpoints: .*step_10 is named twice \(got epoch_1\)"),
        (["step_10", "step_15"], r"--checkpoints: .* \(got step_15\). Existing checkpoints: epoch_1, .*step_20"),
        (["step_10"], "an average needs two or more"),
    ):
        with pytest.raises(UserError, match=reason):
            choose_named(folder, names)


# the command


@pytest.fixture
def rows_path(short_set, tmp_path):
    """16 rows that tiny_model knows by heart, and 8 that it does not."""
    rows = [{"translation": {"en": row["source"], "fr": row["target"]}} for row in short_set.rows]
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_command(fresh_accelerate, capsys):
    """Run a command; return its status, the cells of the lines that it printed, and its error."""

    def run(*words, command=main):
        status = command([*map(str, words)])
        out, err = capsys.readouterr()
        return status, [line.split() for line in out.splitlines()], err

    return run


def flags(rows_path):
    return ["--source_lang", "en", "--target_lang", "fr", "--num_beams", "1", "--cpu_threads", "1"] + [
        *("--test_set", rows_path)
    ]


def evaluated(run_command, path, rows_path):
    """BLEU and chrF as `mtloop evaluate` prints them."""
    words = ["--model", path, *flags(rows_path), "--num_resamples", "10"]
    _, lines, err = run_command(*words, command=evaluate)
    (line,) = [line for line in lines if line[:2] == ["short", "24"]]
    return [line[2], line[5]]


def scores_in(lines, *names):
    """BLEU and chrF of the table's rows; survival is the last column."""
    return [next(line[-3:-1] for line in lines if line[:1] == [name] and len(line) <= 5) for name in names]


@pytest.mark.slow
def test_average_command_writes_and_scores(run_command, three, rows_path, tmp_path):
    out = tmp_path / "out"
    status, lines, err = run_command("--checkpoints", *three, "-o", out, *flags(rows_path))
    assert status == 0, err
    found = [[cell.lstrip("*") for cell in cells] for cells in scores_in(lines, *map(str, three), "average")]
    assert found == [evaluated(run_command, path, rows_path) for path in (*three, out)]
    assert len({bleu for bleu, _ in found}) == 4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    # It is not overwritten.
    status, _, err = run_command("--checkpoints", *three, "-o", out)
    assert status == 2 and f"-o: already exists (got {out})" in err


@pytest.mark.slow
def test_average_command_interpolates_with_the_base(run_command, three, rows_path, tmp_path, tiny_model):
    base, _, model = three
    words = [model, "--base", base, *flags(rows_path)]
    half = tmp_path / "half"
    status, lines, err = run_command(*words, "--interpolate", "0.0,0.5,1", "--weight", "0.5", "-o", half)
    assert status == 0, err
    found = [[cell.lstrip("*") for cell in cells] for cells in scores_in(lines, "0", "0.5", "1")]
    assert found == [evaluated(run_command, path, rows_path) for path in (base, half, model)]
    assert len({bleu for bleu, _ in found}) == 3 and found[2] == max(found, key=lambda cells: float(cells[0]))
    (best,) = [line[0] for line in lines if any(cell.startswith("*") and len(cell) > 1 for cell in line)]
    assert best == "1"
    written = AutoModelForSeq2SeqLM.from_pretrained(half)
    ends = weights_of(base), weights_of(model)
    for name, weight in weights_of(half).items():
        assert torch.equal(weight, (0.5 * ends[0][name].double() + 0.5 * ends[1][name].double()).float())
    assert written.generation_config.to_dict() == tiny_model.generation_config.to_dict()
    record = json.loads((half / "averaged.json").read_text())
    assert record == {"interpolation": {"base": "a", "fine_tuned": "c", "weight": 0.5}}
    for weight, end in ((0, base), (1, model)):
        out = tmp_path / str(weight)
        status, lines, err = run_command(model, "--base", base, "--weight", weight, "-o", out)
        assert status == 0 and not any("translating" in line for line in lines), err
        assert all(torch.equal(tensor, weights_of(end)[name]) for name, tensor in weights_of(out).items())


@pytest.mark.slow
def test_average_command_refuses_a_base_of_another_vocabulary(
    run_command, three, tiny_model, marian_tokenizer, tmp_path
):
    small = moved(tiny_model, 5, 0.0)
    small.resize_token_embeddings(tiny_model.config.vocab_size + 8)
    save(small, marian_tokenizer, tmp_path / "resized")
    words = [three[2], "--weight", "0.5", "-o", tmp_path / "out"]
    status, _, err = run_command(*words, "--base", tmp_path / "resized")
    assert status == 2 and "shared.weight is [408, 128] in it and [400, 128] in the fine-tuned model" in err
    shutil.copytree(three[2], tmp_path / "other")
    path = tmp_path / "other" / "vocab.json"
    vocabulary = json.loads(path.read_text())
    one, two = list(vocabulary)[10:12]
    path.write_text(json.dumps({**vocabulary, one: vocabulary[two], two: vocabulary[one]}))
    status, _, err = run_command(*words, "--base", tmp_path / "other")
    assert status == 2 and "--base: its tokens differ" in err and f"(got {tmp_path}/other). Give" in err
    status, _, err = run_command("--checkpoints", tmp_path / "other", three[2], "-o", tmp_path / "out")
    assert status == 2 and "--checkpoints: the tokenizer differs" in err and f"(got {tmp_path}/other)" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--last, --best, --checkpoints, --interpolate: expected one of them (got none)"),
        (
            ["RUN", "--last", "2", "--best", "2"],
            "--last, --best, --checkpoints, --interpolate: expected one of them (got --last and --best)",
        ),
        (
            ["RUN", "--last", "2", "--weight", "0.5"],
            "--last, --best, --checkpoints, --interpolate: expected one of them (got --last and --interp",
        ),
        (["RUN", "--last", "1", "-o", "x"], "--last: expected a whole number from 2 to 1000 (got 1)."),
        (
            ["RUN", "--last", "2"],
            "--last: no result was asked for. Give -o OUT for the model, --evaluate for its scores, or both",
        ),
        (["--last", "2", "-o", "x"], "RUN: missing with --last. Give the --output_dir"),
        (["RUN", "--last", "2", "-o", "x", "--metric", "bleu"], "--metric: needs --best N (got 'bleu')"),
        (["RUN", "--last", "2", "-o", "x", "--base", "m"], "--base: needs --interpolate or --weight (got 'm')"),
        (["RUN", "--last", "two", "-o", "x"], "--last: expected a whole number from 2 to 1000 (got 'two')."),
        (["RUN", "--last", "2", "-o", "x"], "RUN: not a run folder, it has no checkpoints/ (got RUN)"),
        (["{model}", "--last", "2", "-o", "x"], "RUN: not a run folder, it has no checkpoints/ (got {model})"),
        (["{model}", "--interpolate", "0,2"], "--interpolate: invalid weight (got 2). Give a number from 0"),
        (["{model}", "--interpolate", "0;1"], "--interpolate: invalid weight (got 0;1). Give a number from 0"),
        (["{model}", "--weight", "1.5", "-o", "x"], "--weight: expected a number from 0 to 1 (got 1.5)."),
        (["{model}", "--interpolate", "0,1", "-o", "x"], "-o, --weight: one is missing. Give both"),
        (["{model}", "--weight", "0.5"], "-o, --weight: one is missing. Give both"),
        (["{model}", "--interpolate", "0,1"], "--base: missing, and RUN is not a run folder (got {model})"),
        (
            ["{model}", "--interpolate", "0,1", "--base", "{model}"],
            "--test_set: missing, and the model is not in a run folder (got {model})",
        ),
        (
            ["{model}", "--weight", "0.5", "-o", "x", "--base", "{model}/x"],
            "--base '{model}/x': there is no such",
        ),
        (["--checkpoints", "{model}", "-o", "x"], "--checkpoints: an average needs two or more (got {model})"),
    ],
)
def test_average_command_refuses_mistakes_in_one_line(run_command, model_path, tmp_path, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command(*[word.format(model=model_path) for word in words])
    (line,) = [line for line in err.splitlines() if line.startswith("mtloop: ")]
    assert status == 2 and line.startswith(f"mtloop: error: {reason.format(model=model_path)}"), line
    assert list(tmp_path.iterdir()) == []


# the end of a run

EPOCHS = {"num_train_epochs": 3, "average_last": 2, "learning_rate": 1e-2, "num_warmup_steps": 0, "max_eval_samples": 5}


def mean_of_checkpoints(folder, *steps):
    parts = [weights_of(folder.checkpoints_dir / f"step_{step}") for step in steps]
    return {name: torch.stack([part[name].double() for part in parts]).mean(dim=0).float() for name in parts[0]}


def split_lines(folder):
    return [line for line in read_json_lines(folder.metrics.path) if "split" in line]


@pytest.mark.slow
def test_run_ends_with_the_average_of_its_last_epochs(new_run, pairs_path, capsys, run_command, tmp_path):
    # 4 updates an epoch; every update saves and but 2 checkpoints are kept: those of the epochs stay all the same.
    run = new_run(**EPOCHS, save_steps=1, save_total_limit=2, test_file=pairs_path)
    assert train(run) is None
    out = capsys.readouterr().out
    folder = run.folder
    assert f"{folder.final_dir} is the average of step_8, step_12" in out
    assert {8, 11, 12} <= {step for step, _ in list_checkpoints(folder)}
    expected, final = mean_of_checkpoints(folder, 8, 12), weights_of(folder.final_dir)
    assert final.keys() == expected.keys() and all(torch.equal(final[name], expected[name]) for name in final)
    assert all(torch.equal(run.model.state_dict()[name], weight) for name, weight in final.items())
    loaded = AutoModelForSeq2SeqLM.from_pretrained(folder.final_dir)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in final.items())
    assert [(line["split"], line["step"], line["num_sentences"]) for line in split_lines(folder)] == [
        ("average", 12, 5),
        ("test", 12, 5),
    ]
    assert any(line.split()[:2] == ["average", "12"] for line in out.splitlines())
    assert len(read_json_lines(folder.hypotheses_dir / "average.jsonl")) == 5
    assert run.ending == ", the average of steps 8, 12"
    part = final_part(folder)
    assert (part.step, part.average_of) == (12, (8, 12))
    assert part.manifest not in [
        json.loads((path / "training" / "manifest.json").read_text())["sha256"] for _, path in list_checkpoints(folder)
    ]
    # The command gives the same bytes again, and refuses a corrupt checkpoint.
    status, _, err = run_command(folder.path, "--checkpoints", "epoch_2", "epoch_3", "-o", tmp_path / "out")
    (folder.final_dir / FINAL_MANIFEST_NAME).unlink()
    assert status == 0 and hashes(tmp_path / "out") == hashes(folder.final_dir), err
    weights = folder.checkpoints_dir / "step_12" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    status, _, err = run_command(folder.path, "--last", "2", "-o", tmp_path / "other")
    assert status == 2 and "step_12: corrupt (model.safetensors has changed since it was written" in err
    assert not (tmp_path / "other").exists()


class Killed(BaseException):
    """What kill -9 leaves behind."""


@pytest.mark.slow
@pytest.mark.parametrize(("module", "where"), [(averaging, "save_file"), (atomic, "publish")])
def test_run_killed_during_the_average_is_bitwise_equal(new_run, monkeypatch, module, where):
    run = new_run(**EPOCHS)
    original = getattr(module, where)

    def die(*arguments, **options):
        original(*arguments, **options)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(module, where, die)
        with pytest.raises(Killed):
            train(run)
    assert run.folder.run_record.get("final") is None and split_lines(run.folder) == []
    run.folder.unlock()
    again = new_run(**EPOCHS)
    assert train(again) is None
    expected, final = mean_of_checkpoints(again.folder, 8, 12), weights_of(again.folder.final_dir)
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert not [path for path in again.folder.path.iterdir() if path.name.startswith((".tmp", ".old"))]
    first = hashes(again.folder.final_dir)
    (line,) = split_lines(again.folder)
    again.folder.unlock()
    # Killed after the evaluation, it makes all of it once more, the same.
    train(new_run(**EPOCHS))
    (repeated,) = split_lines(again.folder)
    assert hashes(again.folder.final_dir) == first and repeated["eval_loss"] == line["eval_loss"]


@pytest.mark.slow
def test_publish_average_skips_missing_and_corrupt_checkpoints(new_run, capsys):
    run = new_run(**{**EPOCHS, "average_last": 5}, max_train_steps=6)  # an epoch and a half
    assert train(run) is None
    assert "is the average of step_4, step_6: the run has fewer than 5 epochs" in capsys.readouterr().out
    expected, final = mean_of_checkpoints(run.folder, 4, 6), weights_of(run.folder.final_dir)
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    (run.folder.checkpoints_dir / "step_4" / "config.json").unlink()
    said = []
    averaging.publish_average(run.folder, num_epochs=2, end_step=6, say=said.append)
    assert "step_4 is corrupt (config.json is missing); it is left out of the average" in said[0]
    assert final_record(run.folder)["average_of"] == [6]
    (run.folder.checkpoints_dir / "step_6" / "config.json").unlink()
    with pytest.raises(RunFailed, match=r"--average_last: no valid checkpoint in .* \(got 2\)"):
        averaging.publish_average(run.folder, num_epochs=2, end_step=6, say=said.append)


# the Hub


@pytest.fixture
def averaged_run(tmp_path):
    """A finished run of fake checkpoints whose final/ is the average of the last two, 20 and 30."""
    folder = make_run(tmp_path / "run", is_finished=True)
    (folder.final_dir / "model.safetensors").write_bytes(b"the mean")
    record = final_record(folder)
    (folder.final_dir / FINAL_MANIFEST_NAME).unlink()
    of = {"manifest": "a" * 64, "average_of": [20, 30], "files": hash_files(folder.final_dir)}
    write_manifest(folder.final_dir, {**record, **of})
    with folder.metrics.path.open("a") as file:
        file.write(json.dumps({"split": "average", **evaluation(3, bleu=64.0)}) + "\n")
    write_hypotheses(folder, 99)
    (folder.hypotheses_dir / "step_99.jsonl").rename(folder.hypotheses_dir / "average.jsonl")
    return folder


def test_average_is_pushed_with_its_hashes(averaged_run):
    part = final_part(averaged_run)
    files = files_of(averaged_run, part, with_training=False)
    assert files["model.safetensors"]["sha256"] == hashes(averaged_run.final_dir)["model.safetensors"]
    assert {operation.path_in_repo for operation in additions(files)} == set(files)
    (averaged_run.final_dir / "model.safetensors").write_bytes(b"the median")
    with pytest.raises(Lost, match="has changed since it was saved"):
        additions(files_of(averaged_run, part, with_training=False))


def test_card_names_the_average(averaged_run):
    text = write_card(averaged_run, final_part(averaged_run), TARGET)
    assert "Training is complete; this is the average of the weights after 20 and 30 updates." in text
    assert "**BLEU 64.00, chrF 74.00** on 30 validation sentences." in text
    rows = [line for line in text.splitlines() if line.startswith(("| 3 |", "| average"))]
    assert rows == [
        "| 3 | 30 | 0.8333 | 2.0000 | 60.00 | 70.00 |",
        "| average | 30 |  | 2.0000 | **64.00** | 74.00 |",
    ]
    assert "hypothesis 3 of 99" in text
