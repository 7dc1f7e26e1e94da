"""Text to tokens and back, by the tokenizer that a model file carries (the `tokenizers` library)."""

from collections.abc import Iterable
from contextlib import suppress

from hpcmoe.errors import InputError, JobError


class Tokenizer:
    """A tokenizer from its JSON, which came from `where`.

    Raises `InputError` where it is none, `JobError` where the `tokenizers` package is not installed.
    """

    def __init__(self, json: str, where: str = "the model file") -> None:
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise JobError("text needs the tokenizers package: pip install 'hpcmoe[text]'") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the package has no class of its own for what it cannot read
            raise InputError(f"{where}: the tokenizer is not one of the tokenizers library's ({error})") from None
        except BaseException as error:
            if not _panic(error):
                raise
            raise InputError(f"{where}: the tokenizers library breaks at the tokenizer ({error})") from None

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Tokens of `text`; where `special`, with what the tokenizer itself puts around a text."""
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of `tokens`, special ones left out."""
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=True)


def _panic(error: BaseException) -> bool:
    """Whether a library in Rust met with what it holds to be impossible."""
    return type(error).__name__ == "PanicException"


def check(json: str, where: str) -> None:
    """Raises `InputError` where `json`, from `where`, is no tokenizer; without the `tokenizers` package all may be."""
    with suppress(JobError):
        Tokenizer(json, where)
