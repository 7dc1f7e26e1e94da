"""Conversations as text, by the chat template that a model file carries.

Templates are Jinja's, as checkpoints have them for the transformers library, and run in its sandbox. Anybody may have
written them, so they do so in a process of their own with limits on memory and time.
"""

import datetime
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hpcmoe import child
from hpcmoe.errors import InputError, JobError

MEMORY, SECONDS = 1 << 30, 20
"""What the process may take beside its libraries: bytes, and seconds of a core,"""
EACH = 500
"""one more for so many conversations."""
MISSING, TOO_MUCH = 9, 8
"""Its exit codes where Jinja is not installed, and where it has no more memory."""


@dataclass(frozen=True)
class Chat:
    """A template, and the texts of the special tokens that it may name."""

    template: str
    tokens: dict[str, str] = field(default_factory=dict)
    """bos_token, eos_token, … -> text"""

    def json(self) -> str:
        """What model files hold."""
        return json.dumps(asdict(self))


def parse(chat: str) -> Chat:
    """What `Chat.json` made. Raises `InputError`."""
    try:
        found = Chat(**json.loads(chat))
    except (ValueError, TypeError, RecursionError):
        found = Chat("")
    if not isinstance(found.template, str) or not found.template or not isinstance(found.tokens, dict):
        raise InputError("the model file's chat template is none: run hpcmoe convert again")
    return found


def render(chat: str, conversations: Sequence[dict[str, Any]], where: Sequence[str]) -> list[str]:
    """The text of each conversation, up to where the answer begins; `chat` is a `Chat` as JSON.

    A conversation has what its template is given: messages, and whatever else (tools, …). Raises `InputError` that
    names the place, one of `where`, of the first that cannot be rendered; `JobError` where Jinja is not installed.
    """
    seconds, given = SECONDS + len(conversations) // EACH, asdict(parse(chat))
    command, told = child.interpreter("hpcmoe.files.chat", str(seconds))
    try:
        ended = subprocess.run(command, capture_output=True, env=told, timeout=10 * seconds,
                               input=json.dumps([given, list(conversations)]).encode())
    except subprocess.TimeoutExpired:
        raise InputError(f"{where[0]}: the model's chat template does not come to its end") from None
    if ended.returncode == MISSING:
        raise JobError("conversations need the jinja2 package: pip install 'hpcmoe[text]'")
    if ended.returncode == TOO_MUCH or ended.returncode < 0:
        raise InputError(f"{where[0]}: the model's chat template takes more than {MEMORY >> 20} MiB or {seconds} s")
    if ended.returncode:
        raise RuntimeError(f"the process that renders chat templates ended with {ended.returncode}: {ended.stderr!r}")
    texts, wrong = json.loads(ended.stdout)
    if wrong:
        raise InputError(f"{where[len(texts)]}: the model's chat template does not take this conversation ({wrong})")
    return texts


def _environment():
    """Jinja as transformers sets it up for chat templates."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """Marks what an assistant said, for training; here it is text like any other."""

        tags = frozenset({"generation"})  # type: ignore[assignment]

        def parse(self, parser) -> list[nodes.Node]:
            """What is between the tags."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def complain(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
                separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    found.filters["tojson"] = to_json
    found.globals.update(raise_exception=complain, strftime_now=lambda form: datetime.datetime.now().strftime(form))
    return found


def _serve(seconds: int) -> None:
    """Renders what comes on stdin."""
    try:
        environment = _environment()
    except ModuleNotFoundError:
        sys.exit(MISSING)
    child.limit(resource.RLIMIT_CORE, 0)
    child.limit(resource.RLIMIT_CPU, seconds)
    child.limit(resource.RLIMIT_AS, child.taken() + MEMORY)
    chat, conversations = json.loads(sys.stdin.buffer.read())
    texts, wrong = [], ""
    try:
        template = environment.from_string(chat["template"])
        for conversation in conversations:
            texts.append(template.render(**{**chat["tokens"], "documents": None, "tools": None,
                                            "add_generation_prompt": True, **conversation}))
    except MemoryError:
        raise
    except Exception as error:  # a template may raise whatever Python does
        wrong = " ".join(f"{error}".split()) or type(error).__name__
    sys.stdout.write(json.dumps([texts, wrong]))


if __name__ == "__main__":
    try:
        _serve(int(sys.argv[1]))
    except MemoryError:
        sys.exit(TOO_MUCH)
