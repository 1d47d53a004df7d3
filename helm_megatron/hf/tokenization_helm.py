"""A SentencePiece model as it is, for those that no fast tokenizer tokenizes alike."""

from transformers import SentencePieceBackend


class HelmTokenizer(SentencePieceBackend):
    """SentencePiece's own ids for any text; it adds no tokens, and pads on the left.

    Its special tokens are read where a text has their names, as by any tokenizer of transformers.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, **kwargs):
        kwargs = {"padding_side": "left", "special_tokens_pattern": "none"} | kwargs
        super().__init__(vocab_file=vocab_file, **kwargs)

    def convert_tokens_to_string(self, tokens):
        """The text of tokens, special ones by their names; bytes that are no text as U+FFFD."""
        special, parts, run = set(self.all_special_tokens), [], []
        for token in tokens:
            if token in special or token in self._added_tokens_encoder:
                parts += [self.sp_model.decode(run), token]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self.sp_model.decode(run)])


__all__ = ["HelmTokenizer"]
