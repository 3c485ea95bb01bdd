"""Invariant 2 over processes: the same hypotheses and BLEU on 1, 2 and 3, each row once."""

import json

import pytest

from tests.support.launch import launch

pytestmark = pytest.mark.distributed

WORKER = "tests/distributed/worker_evaluate.py"


@pytest.fixture(scope="module")
def model_dir(demo_run):
    return demo_run.folder / "final"


@pytest.fixture(scope="module")
def reports(model_dir, demo_sample, tmp_path_factory, is_full):
    # 61 rows: no number of batches or ranks divides them; one of them twice, for rows are known by index, not by text.
    pairs = [*demo_sample[:60], demo_sample[0]]
    folder = tmp_path_factory.mktemp("reports")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    found = {}
    for num_processes in (1, 2, 3) if is_full else (1, 2):
        out = folder / f"{num_processes}.json"
        launch(WORKER, num_processes, model_dir, rows, out, num_processes=num_processes)
        found[num_processes] = json.loads(out.read_text())
    return found


def test_each_row_once(reports):
    for report in reports.values():
        assert len(report["hyps"]) == 61
        assert report["hyps"][0] == report["hyps"][60]
    assert len(set(reports[1]["hyps"])) > 30  # the model does not say one thing for all


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_hypotheses_and_scores_are_identical(reports, num_processes):
    one, several = reports[1], reports[num_processes]
    assert several["hyps"] == one["hyps"]
    for name in ("scores", "bleu_sums"):
        assert several[name] == one[name]
    assert several["loss"] == pytest.approx(one["loss"], rel=1e-9)  # float64 sums of the same batches, in another order


def test_more_ranks_than_batches(model_dir, demo_sample, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(demo_sample[0]) + "\n", encoding="utf-8")
    for num_processes in (1, 3):
        launch(WORKER, num_processes, model_dir, rows, tmp_path / f"{num_processes}.json", num_processes=num_processes)
    one, three = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 3))
    assert one["hyps"] == three["hyps"] and len(three["hyps"]) == 1


def test_ctranslate2_translates_what_two_processes_train_in_shards(model_dir, tmp_path):
    flags = [
        "--model_name_or_path", model_dir, "--dataset_name", "demo", "--source_lang", "en", "--target_lang", "fr",
        "--mixed_precision", "no", "--cpu_threads", "1", "--max_train_samples", "60", "--max_eval_samples", "20",
        "--max_train_steps", "1", "--num_beams", "2", "--shard_model", "--output_dir", tmp_path / "run",
    ]  # fmt: skip
    out = launch("train.py", *flags, "--eval_engine", "ctranslate2", num_processes=2)
    (line,) = [line for line in out.splitlines() if line.startswith("--eval_engine ctranslate2: ")]
    assert int(line.split()[2]) >= 19 and "of 20 hypotheses are those of generate()" in line
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    evaluated = [record for record in map(json.loads, lines) if "bleu" in record]
    assert [record["step"] for record in evaluated] == [0, 1]
    assert all(record["bleu"] > 20 and record["eval_loss"] < 2 for record in evaluated)  # the demo's model is good
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".tmp")]
