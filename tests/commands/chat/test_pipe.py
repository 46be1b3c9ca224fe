"""`run --chat` on a tiny model, from its checkpoint on, with transformers' tokenizer beside it."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pocketmoe.cli import main
from pocketmoe.errors import ContextError, InputError
from pocketmoe.runtime.conversation import Conversation
from pocketmoe.runtime.opening import open_bundle
from pocketmoe.runtime.session import Session
from pocketmoe.tests.support.waiting import PATIENCE

COMMAND = (sys.executable, "-m", "pocketmoe")
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('a system message comes first') }}{% endif %}"
    "{% if message.role == 'user' and 'forbidden' in message.content %}"
    "{{ raise_exception('say something else') }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
USER = {"role": "user", "content": "def main(\n"}
SYSTEM = {"role": "system", "content": "Bé brief 🙂"}


def run(*arguments: str | bytes | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, timeout=PATIENCE, check=False
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refused(done: "subprocess.CompletedProcess[str]", *words: str) -> None:
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def chat_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, whose tokenizer puts a token before any text that is not a chat."""
    from tokenizers import processors

    from pocketmoe.model.train.corpus import train_tokenizer

    path = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(tiny_checkpoint, path)
    tokenizer = train_tokenizer(["def main():\n    return 0\n" * 4], 280)
    tokenizer.add_special_tokens(SPECIAL)
    begin = tokenizer.id_to_token(0)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, 0)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return path


@pytest.fixture(scope="module")
def compile_chat(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    from pocketmoe.compiler.compile import compile_bundle
    from pocketmoe.compiler.precision import parse_precision
    from pocketmoe.targets import find_target

    def compile_checkpoint(checkpoint: Path) -> Path:
        target = find_target("cpu")
        path = tmp_path_factory.mktemp("bundle") / "chat"
        compile_bundle(
            checkpoint, path, target=target, precision=parse_precision(["fp32"], 32, target)
        )
        return path

    return compile_checkpoint


@pytest.fixture(scope="module")
def chat_bundle(chat_checkpoint: Path, compile_chat: Callable[[Path], Path]) -> Path:
    return compile_chat(chat_checkpoint)


@pytest.fixture(scope="module")
def session(chat_bundle: Path) -> Iterator[Session]:
    with open_bundle(chat_bundle) as session:
        yield session


@pytest.fixture(scope="module")
def encode(chat_checkpoint: Path) -> Callable[[list[dict[str, str]]], list[int]]:
    """transformers' ids for messages."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(chat_checkpoint)

    def encode_messages(messages: list[dict[str, str]]) -> list[int]:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return [int(token) for token in ids]

    return encode_messages


class TestPromptOfMessages:
    @pytest.mark.parametrize(
        "messages",
        [
            [USER],
            [SYSTEM, USER],
            [SYSTEM, USER, {"role": "assistant", "content": ""}, USER],
            [{"role": "user", "content": "<|im_end|> naïve <|im_start|>"}],
        ],
    )
    def test_ids_are_those_of_transformers(
        self,
        messages: list[dict[str, str]],
        session: Session,
        encode: Callable[[list[dict[str, str]]], list[int]],
    ) -> None:
        ids = session.encode_chat(messages)
        assert ids == encode(messages)
        assert ids[0] == session.tokenizer.token_to_id("<|im_start|>")
        assert session.encode("x")[0] == 0  # a plain prompt begins as the tokenizer says
        told = list(session.generate(messages, max_new_tokens=8))
        again = session.generate(ids, max_new_tokens=8)
        assert told == list(again)
        assert again.reused_tokens == len(ids) - 1

    def test_it_stops_where_generation_config_says(
        self,
        session: Session,
        chat_checkpoint: Path,
        compile_chat: Callable[[Path], Path],
        tmp_path: Path,
    ) -> None:
        """The fourth greedy token is made one of two ends of text."""
        ids = session.encode_chat([USER])
        session.reset()
        logits, told = session.forward(ids, last_only=True), []
        for _ in range(5):
            told.append(int(logits[0].argmax()))
            logits = session.forward([told[-1]], last_only=True)
        end = next(token for token in told[1:] if token != told[0])
        checkpoint = tmp_path / "checkpoint"
        shutil.copytree(chat_checkpoint, checkpoint)
        (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 0]}))
        expected = session.tokenizer.decode(told[: told.index(end)])
        with open_bundle(compile_chat(checkpoint)) as stopping:
            assert stopping.generate([USER]).text() == expected

    def test_a_bundle_without_a_template(self, tiny_bundle_fp32: Path) -> None:
        with open_bundle(tiny_bundle_fp32) as session:
            assert session.chat_template is None
            with pytest.raises(InputError, match="no chat template"):
                session.generate([USER])

    def test_jinja2_is_loaded_for_chats_alone(self, chat_bundle: Path) -> None:
        code = (
            "import sys; from pocketmoe.runtime.opening import open_bundle\n"
            f"session = open_bundle({str(chat_bundle)!r}); list(session.generate('x'))\n"
            "print('jinja2' in sys.modules)\n"
            "session.encode_chat([{'role': 'user', 'content': 'x'}])\n"
            "print('jinja2' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stdout.split() == [b"False", b"True"]


class TestConversation:
    def test_an_answer_that_is_broken_off_is_kept(self, session: Session) -> None:
        conversation = Conversation(session, system="x")
        pieces = conversation.answer("def main(")
        said = next(pieces).text + next(pieces).text
        pieces.close()
        assert conversation.messages == [
            {"role": "system", "content": "x"},
            {"role": "user", "content": "def main("},
            {"role": "assistant", "content": said},
        ]

    def test_a_text_that_was_refused_is_forgotten(self, session: Session) -> None:
        conversation = Conversation(session)
        with pytest.raises(InputError, match="refuses the conversation: say something else"):
            list(conversation.answer("forbidden"))
        assert conversation.messages == []

    def test_a_full_context(self, chat_bundle: Path) -> None:
        with open_bundle(chat_bundle, context=64) as session:
            conversation = Conversation(session, max_new_tokens=8)
            with pytest.raises(ContextError, match="shorten the text"):
                list(conversation.answer("x " * 200))
            list(conversation.answer("def main("))
            with pytest.raises(ContextError, match=r"conversation .* 64 tokens any more; start"):
                list(conversation.answer("def main(" * 9))


class TestRunChat:
    def test_one_prompt(self, chat_bundle: Path, session: Session) -> None:
        arguments = ["run", chat_bundle, "--chat", "--max-tokens", "12", "--temperature", "0.9"]
        arguments += ["--seed", "3", "--system", SYSTEM["content"], "--prompt"]
        expected = session.generate([SYSTEM, USER], max_new_tokens=12, temperature=0.9, seed=3)
        done = run(*arguments, USER["content"])
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == expected.text() + "\n"
        assert run(*arguments, "-", stdin=USER["content"].encode()).stdout == done.stdout

    def test_a_conversation_from_a_pipe(
        self,
        chat_bundle: Path,
        session: Session,
        encode: Callable[[list[dict[str, str]]], list[int]],
    ) -> None:
        messages, expected = [SYSTEM], ""
        for text in ("def main(", " naïve 🙂", "return"):
            messages.append({"role": "user", "content": text})
            answer = session.generate(encode(messages), max_new_tokens=6).text()
            messages.append({"role": "assistant", "content": answer})
            expected += answer + "\n"
        done = run(
            "run", chat_bundle, "--chat", "--system", SYSTEM["content"], "--max-tokens", "6",
            stdin="def main(\n\n naïve 🙂\r\n  \nreturn".encode(),
        )  # fmt: skip
        assert (done.returncode, done.stderr, done.stdout) == (0, "", expected)

    def test_an_empty_pipe(self, chat_bundle: Path) -> None:
        done = run("run", chat_bundle, "--chat")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_stats_at_the_end(self, chat_bundle: Path) -> None:
        arguments = ["run", chat_bundle, "--chat", "--max-tokens", "2", "--stats"]
        done = run(*arguments, stdin=b"a\nb\n")
        assert done.stderr.count("time to first token") == 1

    @pytest.mark.parametrize(
        ("arguments", "stdin", "words"),
        [
            (["--chat"], b"ok\nforbidden\n", ["refuses the conversation: say something else"]),
            (["--chat"], b"caf\xe9\n", ["standard input is not UTF-8", "0xe9 at position 3"]),
            (
                ["--chat", "--context", "64"],
                b"def main(\n" * 9,
                ["conversation", "start a new one"],
            ),
            (
                ["--chat", "--context", "64", "--prompt", "x " * 99],
                b"",
                ["context of 64", "shorten"],
            ),
            (["--chat", "--prompt", ""], b"", ["prompt is empty"]),
            (["--chat", "--prompt", "x", "--system", b"caf\xe9"], b"", ["--system is not UTF-8"]),
            (["--prompt", "x", "--system", "y"], b"", ["--system needs --chat", "--help"]),
            ([], b"", ["give a --prompt, or --chat", "--help"]),
        ],
    )
    def test_bad_input(
        self, arguments: list[str | bytes], stdin: bytes, words: list[str], chat_bundle: Path
    ) -> None:
        refused(run("run", chat_bundle, "--max-tokens", "4", *arguments, stdin=stdin), *words)

    def test_a_bundle_without_a_template(self, tiny_bundle_fp32: Path) -> None:
        done = run("run", tiny_bundle_fp32, "--chat", "--prompt", "x")
        refused(done, f"{tiny_bundle_fp32} has no chat template; run it without --chat")

    def test_ctrl_c_at_a_pipe_ends_the_command(self, chat_bundle: Path) -> None:
        process = subprocess.Popen(
            [*COMMAND, "run", chat_bundle, "--chat", "--max-tokens", "100000"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"def main(\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE)
        assert (process.returncode, stderr) == (130, b"interrupted\n")

    def test_a_terminal(self, chat_bundle: Path) -> None:
        """Ctrl-C ends the answer, then the conversation goes on until Ctrl-D."""
        here, there = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "run", chat_bundle, "--chat", "--max-tokens", "100000"],
            stdin=there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        os.close(there)
        assert process.stdout is not None
        assert process.stderr is not None
        out, err = process.stdout.fileno(), process.stderr.fileno()

        def told() -> bytes:
            """What stderr says until it asks for the next line."""
            text = b""
            while not text.endswith(b"> "):
                text += os.read(err, 1) or pytest.fail(f"stderr ended after {text!r}")
            return text

        try:
            assert told() == b"> "
            for line in (b"def main(\n", b"return\n"):
                os.write(here, line)
                assert os.read(out, 1)
                process.send_signal(signal.SIGINT)
                assert told() == b"interrupted\n> "
                assert os.read(out, 1 << 16).endswith(b"\n")  # the rest of this answer
            os.write(here, b"\x04")
            _, stderr = process.communicate(timeout=PATIENCE)
            assert (process.returncode, stderr) == (0, b"\n")
        finally:
            process.kill()
            os.close(here)


class TestBundle:
    def test_a_template_with_a_fault_is_refused_before_compiling(
        self, chat_checkpoint: Path, tmp_path: Path
    ) -> None:
        checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
        shutil.copytree(chat_checkpoint, checkpoint)
        (checkpoint / "chat_template.jinja").write_text("{{ bos_token }}\n{% for x in %}\n")
        done = run("compile", checkpoint, "--target", "cpu", "--block", "32", "-o", bundle)
        refused(done, f"{checkpoint}/chat_template.jinja: ", "not valid, line 2: ", "remove it")
        assert os.listdir(tmp_path) == ["checkpoint"]

    def test_a_template_that_was_changed(self, chat_bundle: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        shutil.copytree(chat_bundle, bundle)
        text = (bundle / "chat.json").read_text(encoding="utf-8")
        (bundle / "chat.json").write_text(text.replace("im_start", "im_stuff"), encoding="utf-8")
        done = CliRunner().invoke(main, ["verify", str(bundle)])
        assert done.exit_code == 2
        assert "is damaged: chat.json; compile" in done.stderr.splitlines()[-1]
        refused(run("run", bundle, "--chat", "--prompt", "x"), "chat.json is damaged: its hash")

    def test_a_file_that_the_manifest_does_not_list_is_not_used(
        self, tiny_bundle_fp32: Path, chat_bundle: Path, tmp_path: Path
    ) -> None:
        bundle = tmp_path / "bundle"
        shutil.copytree(tiny_bundle_fp32, bundle)
        shutil.copy(chat_bundle / "chat.json", bundle)
        refused(run("run", bundle, "--chat", "--prompt", "x"), "has no chat template")

    @pytest.mark.parametrize(("fixture", "told"), [("chat_bundle", True), ("tiny_bundle", False)])
    def test_inspect_tells(self, fixture: str, told: bool, request: pytest.FixtureRequest) -> None:
        bundle = str(request.getfixturevalue(fixture))
        facts = json.loads(CliRunner().invoke(main, ["inspect", bundle, "--json"]).stdout)
        assert facts["chat_template"] is told
        table = CliRunner().invoke(main, ["inspect", bundle]).stdout
        (row,) = [line.split() for line in table.splitlines() if "chat template" in line]
        assert row == ["chat", "template", "yes" if told else "no"]
