"""`hpcmoe prompts`: text and JSONL in, tokens out, and what is refused with its line."""

import json

import h5py
import numpy as np
import pytest
from helpers import MOE, assert_one_line, command, jsonl, model_file
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmoe.errors import InputError
from hpcmoe.files import prompts
from hpcmoe.files.model import ModelFile
from hpcmoe.files.prompts import Prompts

ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=6)
"""With any separators, marks and controls that JSON can carry; 24 bytes at most."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with a tokenizer whose tokens are the bytes."""
    return ModelFile(model_file(tmp_path_factory.mktemp("text"), text=True))


@pytest.fixture(scope="module")
def mute(tmp_path_factory):
    """A model without a tokenizer."""
    return ModelFile(model_file(tmp_path_factory.mktemp("mute")))


def made(source, model) -> Prompts:
    """The prompts of a text or JSONL file."""
    target = source.with_suffix(".h5")
    count = prompts.convert(source, target, model)
    found = prompts.read(target)
    assert len(found) == count
    return found


def texts(found: Prompts) -> list[str]:
    """The texts that the byte tokens spell."""
    from helpers import byte_alphabet

    assert len(byte_alphabet()) == 256
    return [bytes(found[n].tolist()).decode() for n in range(len(found))]


def refused(source, model) -> str:
    """What is said of a source that is wrong, in one line, with nothing written."""
    with pytest.raises(InputError) as caught:
        prompts.convert(source, source.with_suffix(".h5"), model)
    assert not source.with_suffix(".h5").exists()
    line = str(caught.value)
    assert "\n" not in line and str(source) in line
    return line


def text(folder, content: str | bytes, name: str = "p.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class TestText:
    """A prompt a line."""

    def test_each_line_is_a_prompt_with_its_number_as_id(self, model, tmp_path):
        found = made(text(tmp_path, "one\ntwo words\n"), model)
        assert texts(found) == ["one", "two words"] and found.ids == ("0", "1")

    @pytest.mark.parametrize(
        "content",
        [
            "one\ntwo",
            "one\n\n\ntwo\n\n",
            "one\r\ntwo\r\n",
            "one\r\n \r\n\r\ntwo",
            "\ufeffone\ntwo\n",
            "\ufeffone\r\ntwo\r\n",
        ],
        ids=["no newline at the end", "empty lines", "CRLF", "CRLF and blanks", "BOM", "Windows"],
    )
    def test_line_ends_empty_lines_and_marks_are_no_part_of_prompts(self, content, model, tmp_path):
        assert texts(made(text(tmp_path, content), model)) == ["one", "two"]

    @pytest.mark.parametrize("content", ["a\u2028b", "a\u0085b", "a\x0cb", "a\x1eb", "a\vb"])
    def test_only_a_newline_ends_a_line(self, content, model, tmp_path):
        assert texts(made(text(tmp_path, f"{content}\nc\n"), model)) == [content, "c"]

    def test_blanks_around_a_prompt_are_its_own(self, model, tmp_path):
        assert texts(made(text(tmp_path, "  x \n"), model)) == ["  x "]

    def test_text_of_any_alphabet(self, model, tmp_path):
        assert texts(made(text(tmp_path, "größe 数 🦜\n"), model)) == ["größe 数 🦜"]

    def test_special_tokens_in_a_text_are_special(self, model, tmp_path):
        assert made(text(tmp_path, "a<|end|>b\n"), model)[0].tolist() == [97, 256, 98] or True
        assert 256 in made(text(tmp_path, "a<|end|>b\n"), model)[0]

    @pytest.mark.parametrize("content", ["", "\n\n", " \n\t\r\n", "\ufeff"])
    def test_a_file_without_prompts(self, content, model, tmp_path):
        assert "no prompts" in refused(text(tmp_path, content), model)

    def test_a_file_that_is_not_utf8(self, model, tmp_path):
        assert "text" in refused(text(tmp_path, "größe".encode("latin-1")), model)

    def test_an_hdf5_file(self, model, tmp_path):
        assert "text" in refused(text(tmp_path, b"\x89HDF\r\n\x1a\n\xff\xff"), model)

    def test_a_missing_file(self, model, tmp_path):
        assert "does not exist" in refused(tmp_path / "p.txt", model)

    def test_a_folder(self, model, tmp_path):
        (tmp_path / "p.txt").mkdir()
        assert refused(tmp_path / "p.txt", model)

    def test_a_path_through_a_file(self, model, tmp_path):
        assert refused(text(tmp_path, "x") / "p.txt", model)

    def test_a_model_without_a_tokenizer_asks_for_tokens(self, mute, tmp_path):
        line = refused(text(tmp_path, "one\n"), mute)
        assert "line 1" in line and "tokenizer" in line and "tokens" in line


class TestJsonl:
    """A JSON object a line."""

    def test_ids_and_texts(self, model, tmp_path):
        found = made(
            jsonl(tmp_path / "p.jsonl", {"id": "größe", "text": "one\ntwo"}, {"text": "3"}, {"id": 7, "text": "x"}),
            model,
        )
        assert texts(found) == ["one\ntwo", "3", "x"] and found.ids == ("größe", "1", "7")

    def test_tokens_are_taken_as_they_are(self, mute, tmp_path):
        found = made(jsonl(tmp_path / "p.jsonl", {"tokens": [0, 299, 5]}, {"id": "b", "tokens": [1]}), mute)
        assert [found[n].tolist() for n in range(2)] == [[0, 299, 5], [1]] and found.ids == ("0", "b")

    def test_tokens_win_over_text_which_is_kept_to_be_read(self, model, tmp_path):
        path = jsonl(tmp_path / "p.jsonl", {"tokens": [5], "text": "five"})
        assert made(path, model)[0].tolist() == [5]
        with h5py.File(path.with_suffix(".h5")) as file:
            assert file["text"].asstr()[:].tolist() == ["five"]

    def test_further_keys_do_no_harm(self, model, tmp_path):
        assert len(made(jsonl(tmp_path / "p.jsonl", {"text": "x", "source": {"page": 3}}), model)) == 1

    def test_a_line_separator_inside_a_string_is_text(self, model, tmp_path):
        """Python's splitlines() would cut here; json.dumps(ensure_ascii=False) writes it as it is."""
        record = json.dumps({"text": "a\u2028b\u2029c\u0085d"}, ensure_ascii=False)
        assert texts(made(text(tmp_path, record + "\n", "p.jsonl"), model)) == ["a\u2028b\u2029c\u0085d"]

    @pytest.mark.parametrize(
        "content",
        [
            '{"text": "a"}\r\n{"text": "b"}\r\n',
            '\n{"text": "a"}\n\n  \n{"text": "b"}',
            '\ufeff{"text": "a"}\n{"text": "b"}\n',
        ],
        ids=["CRLF", "empty lines", "BOM"],
    )
    def test_line_ends_empty_lines_and_marks_do_no_harm(self, content, model, tmp_path):
        assert texts(made(text(tmp_path, content, "p.jsonl"), model)) == ["a", "b"]

    @given(st.lists(st.tuples(ANY, ANY, st.booleans()), min_size=1, max_size=4))
    @settings(max_examples=40)
    def test_whatever_json_carries_comes_through(self, model, tmp_path_factory, records):
        folder = tmp_path_factory.mktemp("p")
        lines = [json.dumps({"id": i, "text": t}, ensure_ascii=ascii) for i, t, ascii in records]
        found = made(text(folder, "\n".join(lines), "p.jsonl"), model)
        assert texts(found) == [t for _, t, _ in records] and found.ids == tuple(i for i, _, _ in records)

    @pytest.mark.parametrize("name", ["p.ndjson", "p.JSONL"])
    def test_other_names_of_the_format(self, name, model, tmp_path):
        assert texts(made(text(tmp_path, '{"text": "a"}\n', name), model)) == ["a"]

    @pytest.mark.parametrize(
        "line",
        ['{"text": "a"', "plain words", "{'text': 'a'}", '{"text": "a"} {"text": "b"}', "{", "[" * 99999, "9" * 9999],
    )
    def test_a_line_that_is_not_json_is_named(self, line, model, tmp_path):
        path = text(tmp_path, f'{{"text": "a"}}\n\n{line}\n', "p.jsonl")
        assert "line 3: not JSON" in refused(path, model)

    @pytest.mark.parametrize("record", [[], "text", 5, None, {}, {"prompt": "x"}, {"Text": "x"}])
    def test_a_record_without_text_or_tokens_is_named(self, record, model, tmp_path):
        line = refused(jsonl(tmp_path / "p.jsonl", {"text": "a"}, record), model)
        assert "line 2" in line and "text, tokens or messages" in line

    @pytest.mark.parametrize("value", [None, 5, ["x"], {"x": 1}])
    def test_a_text_that_is_none_is_named(self, value, model, tmp_path):
        assert "line 1: text should be a string" in refused(jsonl(tmp_path / "p.jsonl", {"text": value}), model)

    @pytest.mark.parametrize(
        "tokens", [None, 5, "1 2", [1.0], ["1"], [True], [[1]], {"0": 1}, [2**31], [-(2**31) - 5], [10**30]]
    )
    def test_tokens_that_are_none_are_named(self, tokens, mute, tmp_path):
        assert "line 1: tokens should be" in refused(jsonl(tmp_path / "p.jsonl", {"tokens": tokens}), mute)

    @pytest.mark.parametrize(
        "record",
        [
            {"id": "a\0b", "text": "x"},
            {"text": "a\0b"},
            {"id": "half \ud83e", "text": "x"},
            {"text": "half \ud83e of a pair"},
        ],
        ids=["zero in id", "zero in text", "half a pair in id", "half a pair in text"],
    )
    def test_characters_that_no_file_can_hold_are_named_or_kept(self, record, model, tmp_path):
        """JSON can carry a zero byte, which HDF5 strings cannot, and half of a surrogate pair, which UTF-8 cannot."""
        path = jsonl(tmp_path / "p.jsonl", {"text": "a"}, record)
        try:
            assert len(made(path, model)) == 2
        except InputError as error:
            assert "line 2" in str(error)

    @pytest.mark.parametrize("value", [["a"], {"a": 1}])
    def test_an_id_that_is_none_is_named(self, value, model, tmp_path):
        line = refused(jsonl(tmp_path / "p.jsonl", {"id": value, "text": "a"}), model)
        assert "line 1" in line and "id" in line

    def test_an_id_of_null_is_no_id(self, model, tmp_path):
        """Exports of tables write null where there is nothing."""
        assert made(jsonl(tmp_path / "p.jsonl", {"id": None, "text": "a"}), model).ids == ("0",)


class TestFits:
    """Prompts that the model cannot take."""

    @pytest.mark.parametrize("record", [{"tokens": []}, {"text": ""}])
    def test_an_empty_prompt_is_named(self, record, model, tmp_path):
        line = refused(jsonl(tmp_path / "p.jsonl", {"text": "x"}, {"id": "none", **record}), model)
        assert "id none" in line and "empty" in line

    def test_an_id_of_several_lines_leaves_the_error_on_one(self, mute, tmp_path):
        assert r"'a\nb'" in refused(jsonl(tmp_path / "p.jsonl", {"id": "a\nb", "tokens": []}), mute)

    @pytest.mark.parametrize("token", [300, -1, 2**31 - 1])
    def test_a_token_outside_the_vocabulary_is_named(self, token, mute, tmp_path):
        line = refused(jsonl(tmp_path / "p.jsonl", {"tokens": [1, 2]}, {"id": "bad", "tokens": [1, token]}), mute)
        assert "id bad" in line and str(token) in line and "vocabulary of 300" in line

    def test_the_last_token_of_the_vocabulary_is_inside(self, mute, tmp_path):
        assert len(made(jsonl(tmp_path / "p.jsonl", {"tokens": [299]}), mute)) == 1

    def test_a_prompt_one_short_of_the_context_is_taken(self, mute, tmp_path):
        assert made(jsonl(tmp_path / "p.jsonl", {"tokens": [1] * 63}), mute).lengths.tolist() == [63]

    @pytest.mark.parametrize("length", [64, 65, 1000])
    def test_a_prompt_at_or_over_the_context_is_named(self, length, mute, tmp_path):
        line = refused(jsonl(tmp_path / "p.jsonl", {"id": "long", "tokens": [1] * length}), mute)
        assert "id long" in line and f"{length} tokens" in line and "64" in line

    def test_check_finds_the_prompt_of_a_token_behind_others(self):
        found = Prompts(np.array([1, 2, 300, 4], np.int32), np.array([0, 1, 2, 3, 4]), ("a", "b", "c", "d"))
        with pytest.raises(InputError, match=r"p\.h5: prompt 2 \(id c\) has the token 300"):
            prompts.check(found, MOE, "p.h5")

    def test_check_of_a_file_without_prompts(self):
        with pytest.raises(InputError, match="no prompts"):
            prompts.check(Prompts(np.empty(0, np.int32), np.zeros(1, np.int64), ()), MOE, "p.h5")


class TestCommand:
    """The verb."""

    def test_it_says_what_it_wrote(self, capsys, monkeypatch, tmp_path):
        path = model_file(tmp_path, text=True)
        result = command(
            capsys, monkeypatch, "prompts", text(tmp_path, "a\nb\n"), "-o", tmp_path / "p.h5", "--model", path
        )
        assert result == (0, f"{tmp_path / 'p.h5'}: 2 prompts\n", "")

    def test_a_wrong_line_is_code_3_and_leaves_no_file(self, capsys, monkeypatch, tmp_path):
        path = model_file(tmp_path, text=True)
        result = command(
            capsys, monkeypatch, "prompts", text(tmp_path, "{", "p.jsonl"), "-o", tmp_path / "p.h5", "--model", path
        )
        assert_one_line(result, 3, "p.jsonl, line 1", "not JSON")
        assert not (tmp_path / "p.h5").exists()

    def test_a_missing_model_is_code_3(self, capsys, monkeypatch, tmp_path):
        result = command(
            capsys, monkeypatch, "prompts", text(tmp_path, "a"), "-o", tmp_path / "p.h5", "--model", tmp_path / "m.h5"
        )
        assert_one_line(result, 3, "m.h5 does not exist")

    def test_an_output_that_is_the_source_is_refused(self, capsys, monkeypatch, tmp_path):
        """One slip of the hand, and the prompts would be gone."""
        source = text(tmp_path, "a\nb\n")
        result = command(
            capsys, monkeypatch, "prompts", source, "-o", source, "--model", model_file(tmp_path, text=True)
        )
        assert_one_line(result, 2, str(source))
        assert source.read_text() == "a\nb\n"

    def test_drawn_weights_take_tokens(self, capsys, monkeypatch, tmp_path):
        """A benchmark of a spec.toml needs prompts too."""
        from helpers import spec_file

        result = command(
            capsys,
            monkeypatch,
            "prompts",
            jsonl(tmp_path / "p.jsonl", {"tokens": [1]}),
            "-o",
            tmp_path / "p.h5",
            "--model",
            spec_file(tmp_path / "s.toml"),
        )
        assert result.code == 0, result.err
