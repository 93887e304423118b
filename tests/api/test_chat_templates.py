"""Chat templates, against transformers' apply_chat_template."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny import byte_level_tokenizer
from transformers import PreTrainedTokenizerFast

from halfbyte import _core, chat
from halfbyte.errors import CorruptFileError, InvalidArgumentError, NotFoundError, UnsupportedError
from halfbyte.gguf_tokenizer import load_gguf_tokenizer
from halfbyte.tokenizer import TokenizerSettings, load_folder_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BLOCKS = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{# a comment #}
    {% for message in messages %}
        {% if loop.index0 is odd and message.role != 'assistant' %}
            {{ raise_exception('roles must alternate') }}
        {% endif %}
  <{{ message.role }}>{{ message.content }}{{ eos_token }}
    {% endfor %}
{{ system }}
{% if add_generation_prompt %}
<assistant>
{% endif %}
"""
TOOLS = """\
{% set ns = namespace(found=false) %}
{% for message in messages %}
{% if message.role == 'skip' %}{% continue %}{% endif %}
{% if message.role == 'stop' %}{% break %}{% endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}

{% set ns.found = true %}
{% endfor %}
{{ {'b': '<é>', 'a': [1, 2.5, none, true]} | tojson(indent=2) }}
{% if tools %}{{ tools | tojson }}{% endif %}{{ ns.found }}{{ unknown_name }}{% if thinking is defined %}T{% endif %}
"""
DATE = "{{ strftime_now('%Y-%m-%d') }} {{ messages | length }}"

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is gravity?"}],
    [
        {"role": "system", "content": "  Be brief.\n"},
        {"role": "user", "content": "Hi <b>&amp;</b> 'you' \"there\""},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "日本 😀"},
    ],
    [{"role": "user", "content": "a"}, {"role": "skip", "content": ""}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": [{"type": "text", "text": "part"}]}, {"role": "stop", "content": "x"}],
]


def settings(template: str | dict[str, str]) -> TokenizerSettings:
    templates = {"default": template} if isinstance(template, str) else template
    return TokenizerSettings("model", {"bos_token": "<|start|>", "eos_token": "<|end|>"}, (), templates)


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(), bos_token="<|start|>", eos_token="<|end|>"
    )
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("template", [CHATML, BLOCKS, TOOLS, DATE])
def test_rendered_text(template: str, messages: list[dict[str, Any]], prompt: bool) -> None:
    try:
        expected = reference(template, messages, add_generation_prompt=prompt)
    except Exception:
        with pytest.raises(InvalidArgumentError):
            chat.render(settings(template), messages, add_generation_prompt=prompt)
    else:
        assert chat.render(settings(template), messages, add_generation_prompt=prompt) == expected


def test_variables() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    expected = reference(TOOLS, CONVERSATIONS[0], tools=tools, thinking=True)
    value = chat.render(
        settings(TOOLS), CONVERSATIONS[0], add_generation_prompt=False, variables={"tools": tools, "thinking": True}
    )
    assert value == expected
    assert value.endswith("T")


def test_smollm2_template(smollm2_path: Path) -> None:
    own = load_gguf_tokenizer(_core.Checkpoint(str(smollm2_path)), str(smollm2_path)).settings
    assert chat.render(own, CONVERSATIONS[0]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n"
    )
    template = own.chat_templates["default"]
    for messages in CONVERSATIONS[:3]:
        expected = reference(template, messages, add_generation_prompt=True)
        assert chat.render(own, messages) == expected


def test_strftime_now() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    text = chat.render(settings(DATE), CONVERSATIONS[0])
    assert text.split()[0] in {before, datetime.now().strftime("%Y-%m-%d")}


def test_named_templates() -> None:
    both = settings({"default": "D", "tool_use": "T"})
    assert chat.render(both, CONVERSATIONS[0]) == "D"
    assert chat.render(both, CONVERSATIONS[0], template="tool_use") == "T"
    assert chat.render(settings({"rag": "R"}), CONVERSATIONS[0]) == "R"
    with pytest.raises(NotFoundError, match=r"'nope'.*default, tool_use"):
        chat.render(both, CONVERSATIONS[0], template="nope")


@pytest.mark.parametrize(
    ("template", "error", "text"),
    [
        ("{{ raise_exception('no system role here') }}", InvalidArgumentError, "no system role here"),
        ("{% for %}", CorruptFileError, "line 1"),
        ("{{ messages.__class__.__mro__ }}", UnsupportedError, "sandbox"),
        ("{{ messages.append(1) }}", UnsupportedError, "sandbox"),
        ("{{ messages[0].content + 1 }}", InvalidArgumentError, "TypeError"),
    ],
)
def test_template_errors(template: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        chat.render(settings(template), CONVERSATIONS[0])


@pytest.mark.parametrize("messages", ["hello", {"role": "user"}, [], [{"content": "x"}], ["hi"], None])
def test_message_errors(messages: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        chat.render(settings(CHATML), messages)


def test_no_template() -> None:
    with pytest.raises(NotFoundError, match=r"no chat template.*generate\(\)"):
        chat.render(settings({}), CONVERSATIONS[0])


def test_where_folders_keep_templates(tmp_path: Path) -> None:
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "tokenizer_config.json"

    def templates() -> dict[str, str]:
        return dict(load_folder_tokenizer(tmp_path).settings.chat_templates)

    assert templates() == {}
    config.write_text(json.dumps({"chat_template": "A"}))
    assert templates() == {"default": "A"}
    config.write_text(
        json.dumps({"chat_template": [{"name": "default", "template": "B"}, {"name": "x", "template": "C"}]})
    )
    assert templates() == {"default": "B", "x": "C"}
    (tmp_path / "chat_template.jinja").write_text("D")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "y.jinja").write_text("E")
    assert templates() == {"default": "D", "x": "C", "y": "E"}
    config.write_text(json.dumps({"chat_template": 3}))
    with pytest.raises(CorruptFileError, match="chat_template"):
        templates()
