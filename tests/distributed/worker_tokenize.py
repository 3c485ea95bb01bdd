"""Worker: train.py, with a line in HF_HOME/tokenized for every batch of texts that a process tokenises.

worker_tokenize.py [flags of train.py]
"""

import os
import sys
from pathlib import Path

from mtloop.cli.commands.train import main
from mtloop.tokenization import encoding

encode_batch = encoding._encode_batch


def counted(*arguments, **settings):
    with (Path(os.environ["HF_HOME"]) / "tokenized").open("a") as file:
        file.write(f"{os.environ['LOCAL_RANK']}\n")
    return encode_batch(*arguments, **settings)


if __name__ == "__main__":
    encoding._encode_batch = counted
    sys.exit(main(sys.argv[1:]))
