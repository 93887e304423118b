"""Chat templates: a checkpoint's own jinja2 program, rendered in a sandbox as ``transformers`` renders it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .errors import CorruptFileError, InvalidArgumentError, NotFoundError, UnsupportedError

if TYPE_CHECKING:
    import jinja2

    from .tokenizer import TokenizerSettings

Message = Mapping[str, Any]


def render(
    settings: TokenizerSettings,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text of a conversation.

    Args:
        settings: of the checkpoint: its templates and special tokens.
        messages: [{"role": "user", "content": "..."}, ...].
        add_generation_prompt: end with the words that open the assistant's turn.
        template: name of a template, where the checkpoint has several; None: "default".
        variables: further variables of the template, such as ``enable_thinking`` or ``tools``.

    Raises:
        NotFoundError: the checkpoint has no such template.
        InvalidArgumentError: the messages aren't a list of dicts with a role, or the template refuses them.
        CorruptFileError: the template isn't valid jinja2.

    """
    import jinja2  # noqa: PLC0415

    checked = _checked(messages)
    compiled = _compile(_source(settings, template), settings.where)
    scope: dict[str, Any] = {
        **settings.special_tokens,
        "tools": None,
        "documents": None,
        **(variables or {}),
        "messages": checked,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return compiled.render(**scope)
    except jinja2.exceptions.SecurityError as error:
        raise UnsupportedError(f"{settings.where}: the chat template does what a sandbox forbids: {error}") from None
    except jinja2.TemplateError as error:
        raise InvalidArgumentError(f"{settings.where}: the chat template refuses these messages: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InvalidArgumentError(
            f"{settings.where}: the chat template fails on these messages: {type(error).__name__}: {error}"
        ) from None


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidArgumentError('chat: messages must be a list such as [{"role": "user", "content": "Hello"}]')
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidArgumentError(f'chat: a message must be a dict with "role" and "content", got {message!r}')
    if not messages:
        raise InvalidArgumentError("chat: messages is empty")
    return [dict(message) for message in messages]


def _source(settings: TokenizerSettings, name: str | None) -> str:
    templates = settings.chat_templates
    if not templates:
        raise NotFoundError(
            f"{settings.where}: the checkpoint has no chat template, so nothing tells how its conversations are "
            "written; use generate() with a prompt of your own"
        )
    if name is None:
        name = next(iter(templates)) if len(templates) == 1 else "default"
    if name not in templates:
        raise NotFoundError(f"{settings.where}: no chat template {name!r}; there is {', '.join(sorted(templates))}")
    return templates[name]


@functools.lru_cache(maxsize=16)
def _compile(source: str, where: str) -> jinja2.Template:
    import jinja2  # noqa: PLC0415

    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise CorruptFileError(f"{where}: chat template, line {error.lineno}: {error}") from None
    except (RecursionError, SyntaxError, ValueError) as error:  # nested too deep for jinja2 or for Python itself
        raise CorruptFileError(f"{where}: the chat template can't be compiled: {error}") from None


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415
    import jinja2.ext  # noqa: PLC0415
    import jinja2.parser  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(jinja2.ext.Extension):
        """``{% generation %}...{% endgeneration %}`` marks what a trainer learns from; the text itself is unchanged."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes for HTML
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment
