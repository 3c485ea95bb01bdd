"""Train a translation model. Pick the hardware with a file, everything else with flags or a recipe:

    accelerate launch train.py                                                    # the built-in demo
    accelerate launch train.py kde4-en-fr                                         # a recipe, by name or file
    accelerate launch --config_file accelerate_configs/multi_gpu.yaml train.py my.yaml --learning_rate 3e-5
    accelerate launch train.py --model_name_or_path Helsinki-NLP/opus-mt-en-fr \
        --train_file pairs.jsonl --source_lang en --target_lang fr --output_dir runs/mine

The same command again resumes an interrupted run. `python train.py --help` lists the flags.
In a notebook: `mtloop.train(train_file=...)`, see docs/runs-and-resume.md.
"""

import sys

from mtloop import main

if __name__ == "__main__":
    sys.exit(main())
