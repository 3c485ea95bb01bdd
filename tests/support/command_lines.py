"""Command lines of other trainers from their READMEs and documentation, with only the program replaced.

Paths of the reader's own are {files} and {output}; models and data sets have their names on the Hub.
"""

from __future__ import annotations

import shlex

# examples/pytorch/translation/README.md of transformers: the fine-tuning of a MarianMT model.
MARIAN = r"""python run_translation.py \
    --model_name_or_path Helsinki-NLP/opus-mt-en-ro \
    --do_train \
    --do_eval \
    --source_lang en \
    --target_lang ro \
    --dataset_name wmt16 \
    --dataset_config_name ro-en \
    --output_dir {output} \
    --per_device_train_batch_size=4 \
    --per_device_eval_batch_size=4 \
    --overwrite_output_dir \
    --predict_with_generate"""

# The same, on one's own files, with the options of `Seq2SeqTrainingArguments` in transformers' guide to translation
# (docs/source/en/tasks/translation.md) and --do_predict.
T5 = r"""python run_translation.py \
    --model_name_or_path t5-small \
    --do_train \
    --do_eval \
    --do_predict \
    --source_lang en \
    --target_lang ro \
    --source_prefix "translate English to Romanian: " \
    --train_file {files}/train.json \
    --validation_file {files}/validation.json \
    --test_file {files}/test.json \
    --output_dir {output} \
    --eval_strategy epoch \
    --learning_rate 2e-5 \
    --per_device_train_batch_size=16 \
    --per_device_eval_batch_size=16 \
    --weight_decay 0.01 \
    --save_total_limit 3 \
    --num_train_epochs 2 \
    --overwrite_output_dir \
    --predict_with_generate True \
    --fp16 True"""

# The README's line for one's own files. It names a data set too, on which run_translation.py trains.
T5_AND_DATA_SET = r"""python run_translation.py \
    --model_name_or_path google-t5/t5-small \
    --do_train \
    --do_eval \
    --source_lang en \
    --target_lang ro \
    --source_prefix "translate English to Romanian: " \
    --dataset_name wmt16 \
    --dataset_config_name ro-en \
    --train_file path_to_jsonlines_file \
    --validation_file path_to_jsonlines_file \
    --output_dir {output} \
    --per_device_train_batch_size=4 \
    --per_device_eval_batch_size=4 \
    --overwrite_output_dir \
    --predict_with_generate"""

# The README's: MBart models require a different format for --source_lang and --target_lang.
MBART = r"""python run_translation.py \
    --model_name_or_path facebook/mbart-large-en-ro  \
    --do_train \
    --do_eval \
    --dataset_name wmt16 \
    --dataset_config_name ro-en \
    --source_lang en_XX \
    --target_lang ro_RO \
    --output_dir {output} \
    --per_device_train_batch_size=4 \
    --per_device_eval_batch_size=4 \
    --overwrite_output_dir \
    --predict_with_generate"""

# The README's, with Accelerate.
NO_TRAINER = r"""accelerate launch run_translation_no_trainer.py \
    --model_name_or_path Helsinki-NLP/opus-mt-en-ro \
    --source_lang en \
    --target_lang ro \
    --dataset_name wmt16 \
    --dataset_config_name ro-en \
    --output_dir {output}"""

# The course, chapter 7.4: the arguments of its `Seq2SeqTrainingArguments` as flags, without the push to the Hub.
COURSE = r"""python run_translation.py \
    --model_name_or_path Helsinki-NLP/opus-mt-en-ro \
    --do_train \
    --do_eval \
    --dataset_name wmt16 \
    --dataset_config_name ro-en \
    --source_lang en \
    --target_lang ro \
    --output_dir {output} \
    --evaluation_strategy no \
    --save_strategy epoch \
    --learning_rate 2e-5 \
    --per_device_train_batch_size 32 \
    --per_device_eval_batch_size 64 \
    --weight_decay 0.01 \
    --save_total_limit 3 \
    --num_train_epochs 3 \
    --predict_with_generate true \
    --fp16 true"""

COMMAND_LINES = {
    "marian": MARIAN,
    "t5": T5,
    "t5_and_data_set": T5_AND_DATA_SET,
    "mbart": MBART,
    "no_trainer": NO_TRAINER,
    "course": COURSE,
}


def flags_of(name: str, *, files: object = "files", output: object = "out") -> list[str]:
    """Return the words of a command line after the name of its program."""
    words = shlex.split(COMMAND_LINES[name].format(files=files, output=output).replace("\\\n", " "))
    return words[next(i for i, word in enumerate(words) if word.endswith(".py")) + 1 :]
