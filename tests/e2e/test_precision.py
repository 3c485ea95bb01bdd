"""Every precision, by flag and by launch file: the run says it, trains in it, and its loss is that of fp32."""

import json

import pytest

from tests.support.launch import PROJECT, PYTHON, run

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Not the recipe, which says auto: a precision of its own.
SMALL = [
    "--dataset_name", "demo", "--source_lang", "en", "--target_lang", "fr", "--train_tokenizer", "--vocab_size", "320",
    "--model_size", "tiny", "--dropout", "0", "--max_train_samples", "300", "--max_eval_samples", "20",
    "--max_train_steps", "4", "--num_warmup_steps", "0", "--num_beams", "1", "--val_max_target_length", "12",
    "--logging_steps", "1", "--cpu_threads", "1",
]  # fmt: skip
# The unit roundoff of what matrix products read; the loss, a mean of some 1,000 numbers that each have errors of that
# size and of their own, is nearer.
ROUNDOFF = {"fp16": 2.0**-11, "bf16": 2.0**-8}


def losses_in(tmp_path, precision, *, by):
    """Launch cpu.yaml with the precision in a flag or in the file; return the logged losses."""
    text = (PROJECT / "accelerate_configs" / "cpu.yaml").read_text(encoding="utf-8")
    assert text.count('mixed_precision: "no"') == 1
    file = tmp_path / f"{precision}_{by}.yaml"
    # The flag wins over a file that says something else.
    of_file = precision if by == "file" else {"no": "bf16"}.get(precision, "no")
    file.write_text(text.replace('mixed_precision: "no"', f'mixed_precision: "{of_file}"'), encoding="utf-8")
    flags = ["--mixed_precision", precision] if by == "flag" else []
    folder = tmp_path / f"{precision}_{by}"
    launcher = [PYTHON, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file)]
    done = run([*launcher, "train.py", *SMALL, *flags, "--output_dir", str(folder)])
    assert done.returncode == 0, done.stderr[-3000:]
    first = done.stdout.splitlines()[0]
    if precision == "no" and by == "file":  # which the launcher says in any case
        assert "precision to be measured" in first
        assert "precision fp32: the run is too short to try bf16" in done.stdout.splitlines()
    else:
        assert f"precision {'fp32' if precision == 'no' else precision}" in first
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4
    return losses


@pytest.fixture(scope="module")
def fp32_losses(tmp_path_factory):
    return losses_in(tmp_path_factory.mktemp("fp32"), "no", by="flag")


@pytest.mark.parametrize(
    "precision", ["no", pytest.param("bf16", marks=pytest.mark.full), pytest.param("fp16", marks=pytest.mark.full)]
)
def test_a_precision_is_the_same_by_flag_and_by_launch_file_and_near_fp32(tmp_path, fp32_losses, precision):
    by_file = losses_in(tmp_path, precision, by="file")
    if precision == "no":
        assert by_file == fp32_losses
        return
    by_flag = losses_in(tmp_path, precision, by="flag")
    assert by_flag == by_file
    assert by_flag != fp32_losses
    assert by_flag == pytest.approx(fp32_losses, rel=ROUNDOFF[precision])
