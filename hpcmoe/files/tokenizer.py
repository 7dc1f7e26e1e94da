"""Text to tokens and back, by the tokenizer that a model file carries (the `tokenizers` library)."""

from collections.abc import Iterable

from hpcmoe.errors import JobError


class Tokenizer:
    """A tokenizer from its JSON. Raises `JobError` where the `tokenizers` package is not installed."""

    def __init__(self, json: str) -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise JobError("text needs the tokenizers package: pip install 'hpcmoe[text]'") from None
        self._tokenizer = tokenizers.Tokenizer.from_str(json)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, with what the tokenizer itself puts around a text."""
        return self._tokenizer.encode(text).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of `tokens`, special ones left out."""
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)
