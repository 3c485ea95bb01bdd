"""`python -m mtloop COMMAND ...` (or `mtloop COMMAND ...`): the commands of the installed package."""

from __future__ import annotations

import sys

import mtloop

USAGE = """usage: python -m mtloop COMMAND ...

  train [RECIPE] [--flag value ...]               train, as train.py does (train --help lists the flags)
  translate FILE... -o OUT --model M              translate files, standard input (-) or --text
  evaluate --model M [--baseline B]               score models on test sets, with confidence intervals
  corpus FILE... | --run RUN                      what a corpus is like before training; --grep WORD shows its pairs
  average RUN --last N|--best N -o OUT            average checkpoints, or --interpolate between a model and its base
  export --model M -o DIR --format ctranslate2    convert for a faster engine, and compare the two
  checkpoint list|verify|prune RUN                what a run folder holds, whether it is sound, and less of it
  push RUN [--epoch N]                            push to the Hub what of a run is not there yet
  selfcheck [--config_file F] [flags of train]    prove on your own model, data and launch file that the numbers hold

  --version                                       print the version"""


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if command == "train":
        from mtloop.cli.train import main as train

        return train(rest)
    if command == "translate":
        from mtloop.cli.translate import main as translate

        return translate(rest)
    if command == "evaluate":
        from mtloop.cli.evaluate import main as evaluate

        return evaluate(rest)
    if command == "corpus":
        from mtloop.cli.corpus import main as corpus

        return corpus(rest)
    if command == "average":
        from mtloop.cli.average import main as average

        return average(rest)
    if command == "export":
        from mtloop.cli.export import main as export

        return export(rest)
    if command == "checkpoint":
        from mtloop.cli.checkpoint import main as checkpoint

        return checkpoint(rest)
    if command == "push":
        from mtloop.cli.push import main as push

        return push(rest)
    if command == "selfcheck":
        from mtloop.selfcheck import main as selfcheck

        return selfcheck(rest)
    if command == "--version":
        print(f"mtloop {mtloop.__version__}")
        return 0
    is_help = command in ("-h", "--help")
    if command and not is_help:
        print(f"mtloop: error: no such command: {command}; python -m mtloop --help lists them", file=sys.stderr)
        return 2
    print(USAGE, file=sys.stdout if is_help else sys.stderr)
    return 0 if is_help else 2


if __name__ == "__main__":
    sys.exit(main())
