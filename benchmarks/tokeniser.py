"""What a prompt's token takes a server's tokeniser, which is what TTFT of long prompts has that no GPU table knows.

Run as `python -m benchmarks.tokeniser [--vocabulary N] [--write DIR]`. Hugging Face's byte-level BPE, as vLLM serves
Llama 3, Qwen and gpt-oss with, is trained on the text files of this environment, since no vocabulary is at hand
without the network, and split by the pattern of OpenAI's o200k. Timed is the processor time of one thread: vLLM gives a
server one thread for it. Texts are prose, ids drawn at random, and ids that follow each other from a random one on, the
last two as clients of benchmarks make prompts (`vllm bench serve --dataset-name random`), decoded first.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.public import write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""By which a text is split before pairs are merged, of github openai/tiktoken, `o200k_base`."""

LENGTHS, TEXTS = (1024, 8192), 40

CHARACTERS, LONGEST = 90_000_000, 100_000
"""Of the training text, and of one file."""


def main() -> None:
    """Trains, times, prints, and writes where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=128_000, help="tokens (128,000, as Llama 3 has)")
    parser.add_argument("--write", metavar="DIR", type=Path, help="a report as well")
    asked = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    corpus = list(_corpus())
    tokeniser = _trained(corpus, asked.vocabulary)
    lines = [f"{tokeniser.get_vocab_size():,} tokens; µs of a processor for each token of a text", ""]
    lines.append(f"{'text':22} {'tokens':>7} {'median':>7} {'least':>6}")
    found = []
    for label, draw in _texts(tokeniser, corpus):
        for length in LENGTHS:
            each_us = [1e6 * _token_s(tokeniser, draw(random.Random(seed), length)) for seed in range(TEXTS)]
            found.append(median(each_us))
            lines.append(f"{label:22} {length:7,} {found[-1]:7.2f} {min(each_us):6.2f}")
    lines.append(f"\nMedian of the medians: {median(found):.2f} µs")
    text = "\n".join(lines)
    sys.stdout.write(f"{text}\n")
    if asked.write is not None:
        write(asked.write / "tokeniser.md", "What a token takes the tokeniser", __doc__, text)


def _corpus() -> Iterator[str]:
    """Text files of this environment, in random order, and what they say."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [path for suffix in ("py", "txt", "md", "rst", "json", "js", "html") for path in root.rglob(f"*.{suffix}")]
    random.Random(0).shuffle(files)
    total = 0
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")[:LONGEST]
        except (OSError, UnicodeDecodeError):
            continue
        yield text
        total += len(text)
        if total > CHARACTERS:
            return


def _trained(corpus: list[str], vocabulary: int) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokeniser = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated"), bytewise])
    tokeniser.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokeniser.train_from_iterator(corpus, trainer)
    return tokeniser


Draw = Callable[[random.Random, int], str]


def _texts(tokeniser: Tokenizer, corpus: list[str]) -> Iterator[tuple[str, Draw]]:
    """Ways to draw a text of about so many tokens."""
    number = tokeniser.get_vocab_size()
    prose = "\n".join(corpus)

    def stretch(rng: random.Random, length: int) -> str:
        start = rng.randrange(len(prose) - 4 * length)
        return prose[start : start + 4 * length]

    def any_ids(rng: random.Random, length: int) -> str:
        return str(tokeniser.decode([rng.randrange(number) for _ in range(length)]))

    def following_ids(rng: random.Random, length: int) -> str:
        first = rng.randrange(number)
        return str(tokeniser.decode([(first + place) % number for place in range(length)]))

    yield "what it was trained on", stretch
    yield "ids at random", any_ids
    yield "ids one after another", following_ids


def _token_s(tokeniser: Tokenizer, text: str) -> float:
    begin_s = time.process_time()
    number = len(tokeniser.encode(text).ids)
    return (time.process_time() - begin_s) / number


if __name__ == "__main__":
    main()
