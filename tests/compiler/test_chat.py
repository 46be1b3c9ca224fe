"""What the compiler takes from a checkpoint for chats: its template and its special tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from pocketmoe.compiler.chat import find_template, special_tokens, write_chat_template
from pocketmoe.errors import CheckpointError
from pocketmoe.tests.support.templates import CHATML


def write_files(root: Path, files: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
PAD = {"__type": "AddedToken", "content": "<pad>", "lstrip": False}
NEWER = {"added_tokens_decoder": {}, "bos_token": None, "eos_token": "<|im_end|>"}


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("files", "source"),
        [
            ({"chat_template.jinja": CHATML}, "chat_template.jinja"),
            ({"tokenizer_config.json": {"chat_template": CHATML}}, "tokenizer_config.json"),
            ({"tokenizer_config.json": {"chat_template": NAMED}}, "tokenizer_config.json"),
            (
                {"tokenizer_config.json": {"chat_template": "x"}, "chat_template.jinja": CHATML},
                "chat_template.jinja",
            ),
            (
                {"chat_template.json": {"chat_template": "x"}, "chat_template.jinja": CHATML},
                "chat_template.jinja",
            ),
            ({"chat_template.json": {"chat_template": CHATML}}, "chat_template.json"),
            (
                {
                    "chat_template.json": {"chat_template": CHATML},
                    "tokenizer_config.json": {"chat_template": "x"},
                },
                "chat_template.json",
            ),
            (
                {
                    "additional_chat_templates/tool_use.jinja": "x",
                    "tokenizer_config.json": {"chat_template": CHATML},
                },
                "tokenizer_config.json",
            ),
            ({}, None),
            ({"tokenizer_config.json": {"chat_template": None}}, None),
            ({"tokenizer_config.json": {"chat_template": ""}}, None),
            ({"tokenizer_config.json": {"chat_template": NAMED[:1]}}, None),
            ({"additional_chat_templates/tool_use.jinja": CHATML}, None),
        ],
    )
    def test_where_the_template_is_from(
        self, files: dict[str, Any], source: str | None, tmp_path: Path
    ) -> None:
        checkpoint = write_files(tmp_path / "checkpoint", files)
        expected = (checkpoint / source, CHATML) if source else None
        assert find_template(checkpoint) == expected
        bundle = write_files(tmp_path / "bundle", {})
        write_chat_template(bundle, checkpoint)
        written = [path.name for path in bundle.iterdir()]
        assert written == (["chat.json"] if source else [])

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"chat_template.jinja": "a\n{% if %}"}, ["chat_template.jinja", "line 2"]),
            ({"chat_template.json": {"chat_template": "{{"}}, ["chat_template.json", "line 1"]),
            ({"tokenizer_config.json": {"chat_template": "{{"}}, ["tokenizer_config.json", "line"]),
            ({"tokenizer_config.json": {"chat_template": 5}}, ["neither text nor a list"]),
            ({"tokenizer_config.json": {"chat_template": [5]}}, ["neither text nor a list"]),
            (
                {"tokenizer_config.json": {"chat_template": [{"name": "default", "template": 5}]}},
                ["neither text nor a list"],
            ),
            ({"tokenizer_config.json": "{"}, ["tokenizer_config.json cannot be read"]),
            ({"tokenizer_config.json": "[]"}, ["tokenizer_config.json is not a JSON object"]),
        ],
    )
    def test_refusals(self, files: dict[str, Any], words: list[str], tmp_path: Path) -> None:
        checkpoint = write_files(tmp_path / "checkpoint", files)
        with pytest.raises(CheckpointError) as caught:
            write_chat_template(tmp_path, checkpoint)
        for word in words:
            assert word in str(caught.value)
        assert not (tmp_path / "chat.json").exists()

    def test_a_template_that_is_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
        with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read"):
            find_template(tmp_path)

    @pytest.mark.parametrize(
        "files",
        [
            {"tokenizer_config.json": {**NEWER, "pad_token": PAD}},
            {"tokenizer_config.json": NEWER, "special_tokens_map.json": {"bos_token": "<s>"}},
            {
                "tokenizer_config.json": {"bos_token": "<x>", "eos_token": "</s>"},
                "special_tokens_map.json": {
                    "bos_token": {"content": "<s>", "lstrip": False, "single_word": False},
                    "unk_token": "<unk>",
                },
            },
            {"tokenizer_config.json": {"add_bos_token": True, "image_token": "<image>"}},
            {"special_tokens_map.json": {"eos_token": "</s>"}},
            {},
        ],
    )
    def test_special_tokens_as_transformers(self, files: dict[str, Any], tmp_path: Path) -> None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        checkpoint = write_files(tmp_path / "checkpoint", files)
        Tokenizer(models.BPE()).save(str(checkpoint / "tokenizer.json"))
        if not (checkpoint / "tokenizer_config.json").exists():
            write_files(checkpoint, {"tokenizer_config.json": {}})
        theirs = PreTrainedTokenizerFast.from_pretrained(checkpoint)
        assert special_tokens(checkpoint) == theirs.special_tokens_map
