"""Training a SentencePiece tokenizer whose decoding gives the text back exactly."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helm_megatron.data.errors import DataError
from helm_megatron.data.inputs import find_sources
from helm_megatron.data.output import staged
from helm_megatron.data.readers import parse_batch, read_batches

MODEL_TYPES = ("bpe", "unigram")
MAX_LINE_BYTES = 1 << 20
# SentencePiece marks unknown text with this character and skips lines that have it.
RESERVED = "\u2585"


@dataclass
class LineCounts:
    """How many lines went into the training, and how many could not."""

    used: int = 0
    too_long: int = 0
    reserved: int = 0


def training_lines(
    paths: Sequence[Path | str], keys: Sequence[str], counts: LineCounts
) -> Iterator[str]:
    """Yield the lines of the documents (any input of preprocessing), updating `counts` on the way.

    Training sees lines, not documents: its time grows with the length of one, and a newline then
    gets a token of its own through the byte fallback.
    """
    for batch in read_batches(find_sources(paths), keys):
        parsed = parse_batch(batch, keys)
        if parsed.bad:
            raise DataError(parsed.bad[0])
        for text in (text for document in parsed.documents for text in document):
            for line in text.split("\n"):
                if RESERVED in line:
                    counts.reserved += 1
                elif len(line.encode()) > MAX_LINE_BYTES:
                    counts.too_long += 1
                elif line:
                    counts.used += 1
                    yield line


def train_tokenizer(
    inputs: Sequence[Path | str],
    output_prefix: Path,
    vocab_size: int,
    model_type: str = "bpe",
    keys: Sequence[str] = ("text",),
    *,
    overwrite: bool = False,
) -> LineCounts:
    """Train a SentencePiece model and write it to `<output_prefix>.model`.

    No normalization, bytes for characters not in the vocabulary, all white space kept: decoding
    an encoded text gives it back, save that U+2581, SentencePiece's own mark, becomes a space. Ids
    0, 1, 2 are <unk>, <s>, </s>; Megatron takes </s> as its end-of-document token.

    Raises:
        DataError: unusable input, or a vocabulary size that does not fit the text.
    """
    import sentencepiece

    counts = LineCounts()
    model = io.BytesIO()
    target = output_prefix.with_name(f"{output_prefix.name}.model")
    with staged([target], overwrite) as [path]:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=training_lines(inputs, keys, counts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=model_type,
                normalization_rule_name="identity",
                byte_fallback=True,
                remove_extra_whitespaces=False,
                max_sentence_length=MAX_LINE_BYTES,
                minloglevel=2,  # problems come as exceptions,
            )
        except RuntimeError as error:
            if not counts.used:
                names = ", ".join(map(str, inputs))
                raise DataError(f"{names}: no text to train a tokenizer on") from error
            raise DataError(_explain(error, vocab_size)) from error
        path.write_bytes(model.getvalue())
    return counts


def _explain(error: RuntimeError, vocab_size: int) -> str:
    """Keep the reason of SentencePiece's failed assertion, without its advice on other options."""
    reason = str(error).rsplit("] ", 1)[-1].partition(" or decrease ")[0].strip()
    return f"--vocab-size {vocab_size} does not fit this text: {reason}"
