"""The command line, command by command."""

SMALL = ("--engine=fake", "--max-num-tokens=16", "--max-model-len=32", "--max-num-seqs=2")
