"""Names, model folders and registrations of strangers: refused where they come in, before anything is stored."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deploy import settings as settings_module
from deploy.bases.add import BaseError, take_in
from deploy.cli.commands import publish
from deploy.cli.output import CommandError
from deploy.settings import SettingsError
from schemas import events as e
from schemas.codec import ContractError
from schemas.names import is_name
from serving.model_files import ModelFilesError, check_model_files
from streams import kafka
from streams.artifacts import ArtifactStore
from streams.register import RegisterStep
from tests.broker import landed
from tests.examples import example
from tests.stores import store_at

NAMES = ["", ".", "..", "../x", "a/b", "a\\b", "-x", "_x", ".x", "Support", "süpport", "a b", "a\n", "x;DROP", "a'--",
         "a" * 64, "a\0", "{x}", "$HOME", "support\u200b"]  # fmt: skip
ANY = st.text(st.sampled_from("./\\\0~%ab9-_AB \n") | st.characters(exclude_categories=["Cs"]), max_size=140)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return store_at(tmp_path / "store")


@given(ANY)
def test_fuzzed_names_are_plain(name: str) -> None:
    if is_name(name):
        assert name.isascii() and name == name.lower() and len(name) < 64 and name[0].isalnum()
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789._-")


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_refused_wherever_it_comes_from(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    assert not is_name(name)
    for event in (e.RecordSubmitted, e.BaseAddRequested, e.VerdictReached, e.InferenceServed, e.RollbackRequested):
        with pytest.raises(ContractError, match=r"regex .* `\$.model`"):
            kafka.decode(landed(kafka.out(example(event, name), source="test")))
    for event, field in ((e.ShardWritten, "shard_id"), (e.ErasureRequested, "erasure_id"), (e.JobRequested, "base")):
        said = kafka.out(example(event, "support", **{field: name}), source="test")
        with pytest.raises(ContractError, match=rf"regex .* `\$.{field}`"):
            kafka.decode(landed(said))
    with pytest.raises(BaseError, match="is no name for a base"):
        take_in(name, str(tmp_path), store)
    file = tmp_path / "tuneloop.toml"
    for table in (f"[models.{json.dumps(name)}]\n", f"[models.support]\nbase = {json.dumps(name)}\n"):
        if "\0" not in name:
            file.write_text(table)
            with pytest.raises(SettingsError, match=r"a model's name has|regex"):
                settings_module.load({"config": str(file)}, {})


# -- bases --------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("a base")
    save_file({"a": np.zeros((3, 4), np.float32)}, folder / "model.safetensors")
    return folder


def linked(name: str, target: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return apply


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "vocab.txt")


def huge(folder: Path) -> None:
    with (folder / "vocab.txt").open("wb") as file:
        file.truncate(200_000_000)  # a hole: it takes no disk


def strange(folder: Path) -> None:
    (folder / "tokenizer\nx.json").write_text("{}")


def many(folder: Path) -> None:
    for number in range(1_001):
        (folder / f"vocab{number}").touch()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (linked("README.md", "/etc/passwd"), "is a link"), (linked("vocab.txt", "/dev/zero"), "is a link"),
        (linked("LICENSE", "config.json"), "is a link"), (linked("config.json", "nowhere"), "is a link"),
        (linked("vocab.d", "/etc"), "is a link"), (fifo, "no regular file"), (huge, "larger than"),
        (strange, "rename it"), (many, "the limit is 1000"), (lambda folder: (folder / "vocab").mkdir(), "no regular file"),
    ],
)  # fmt: skip
def test_only_plain_files_of_a_bounded_size_are_taken_in(
    base: Path, store: ArtifactStore, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(base)
    with pytest.raises(BaseError, match=message):
        take_in("mine", str(base), store)
    assert store.files("bases") == []


GOOD, BAD = '{"architectures": ["LlamaForCausalLM"]}', '{"auto_map": {"AutoModel": "x.Y"}}'


@pytest.mark.parametrize("at", ["_copy", "inspect"])
def test_what_is_stored_is_what_was_checked(
    base: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Somebody swaps the files once they are copied, or once they are checked: neither gets unchecked files stored."""
    from deploy.bases import add

    done = getattr(add, at)

    def swap(*folders: Path) -> Any:
        result = done(*folders)
        (base / "config.json").write_text(GOOD if at == "_copy" else BAD)
        return result

    (base / "config.json").write_text(BAD if at == "_copy" else GOOD)
    monkeypatch.setattr(add, at, swap)
    if at == "_copy":
        with pytest.raises(BaseError, match="auto_map"):
            take_in("mine", str(base), store)
    else:
        asked = take_in("mine", str(base), store)
        assert b"auto_map" not in store.read_bytes(f"{asked.path}/config.json")


@pytest.mark.parametrize(
    "source", ["models/llama", "org/name", "hf:name", "hf:org/name", "hf:org/name@", "hf:org/../x@main", "hf:../x@main",
               "hf:org/name@../x", "hf:/etc@x", "hf:org/name@a b", "https://huggingface.co/org/name", "hf:org/name@main\n"]
)  # fmt: skip
def test_a_mistyped_source_fetches_nothing(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    with pytest.raises(BaseError, match="hf:ORG/NAME@REVISION"):
        take_in("mine", source, store)


CODE: list[tuple[str, Any]] = [
    ("config.json", {"auto_map": {"AutoModel": "x.Y"}}), ("config.json", {"attn_implementation": "evil/kernel"}),
    ("config.json", {"_attn_implementation": "evil/kernel"}), ("config.json", {"quantization_config": {"modules": ["x"]}}),
    ("config.json", {"text_config": {"_attn_implementation": "evil/kernel"}}),
    ("config.json", {"a": [{"b": {"auto_map": {}}}]}), ("generation_config.json", {"custom_generate": "evil/code"}),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}), ("adapter_config.json", {}),
    ("model.safetensors.index.json", {"weight_map": {"a": "../../other/model.safetensors"}}),
    ("model.safetensors.index.json", {"weight_map": {"a": 7}}), ("config.json", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("file", "content"), CODE)
def test_a_model_folder_that_asks_for_code_is_refused(base: Path, store: ArtifactStore, file: str, content: Any) -> None:
    (base / file).write_text(json.dumps(content))
    with pytest.raises(ModelFilesError):
        check_model_files(base)
    if file != "adapter_config.json":  # this one is not among the files that are kept
        with pytest.raises(BaseError):
            take_in("mine", str(base), store)
        assert store.files("bases") == []


def test_deep_and_broken_json_is_refused(base: Path) -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000, "{", "\xff", "", "nul"):
        (base / "config.json").write_text(text)
        with pytest.raises(ModelFilesError):
            check_model_files(base)


# -- the registry -------------------------------------------------------------------------------------


def register(step: RegisterStep, *events: Any) -> list[Any]:
    outs = step.handle([landed(kafka.out(event, source="test"), offset) for offset, event in enumerate(events)])
    return [out if out.topic.startswith("dead.") else kafka.decode(landed(out))[1] for out in outs]


@pytest.mark.parametrize(
    "path", ["../../tmp/mine", "/tmp/mine", "bases/other", "adapters/{}", "bases/{}/", "bases/{}/..", "", "bases/../{}"]
)
@pytest.mark.parametrize("event", [e.BaseAddRequested, e.VerdictReached])
def test_a_path_that_is_not_its_contents_becomes_a_letter(event: Any, path: str, tmp_path: Path) -> None:
    digest = "ab" * 32
    path = path.format(digest) if event is e.BaseAddRequested else path.replace("bases", "adapters", 1).format(digest)
    if event is e.VerdictReached and path == f"adapters/{digest}":
        path = f"bases/{digest}"
    (letter,) = register(RegisterStep("", {}, store_at(tmp_path)), example(event, "mine", digest=digest, path=path, passed=True)
                         if event is e.VerdictReached else example(event, "mine", digest=digest, path=path))  # fmt: skip
    assert letter.topic == "dead.register" and letter.value is not None


def test_a_known_base_keeps_its_weights(tmp_path: Path) -> None:
    step = RegisterStep("", {}, store_at(tmp_path))
    first, other = example(e.BaseAddRequested, "mine"), example(e.BaseAddRequested, "mine")
    base, line = register(step, first)
    assert (base.digest, line.decision) == (first.digest, "base-added")
    assert register(step, first) == []
    (refused,) = register(step, other)
    assert refused.decision == "command-refused" and "under a new name" in refused.reason
    assert register(step, first) == [], "what was refused changed nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_command_for_a_name_that_is_none_is_not_sent(name: str) -> None:
    """Nobody would take it: there is no broker at this address, and none is asked."""
    with pytest.raises(CommandError, match="cannot be sent"):
        publish("127.0.0.1:1", e.RollbackRequested(model=name))
