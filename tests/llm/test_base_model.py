"""Loading: what is found, what is refused and how the message helps."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from pydantic import ValidationError

from degaml_kedro.config.schema import (
    BaseModelParameters,
    PromptParameters,
    RandomModel,
    ScoringParameters,
)
from degaml_kedro.llm import base_model as module
from degaml_kedro.llm.base_model import (
    ModelError,
    cache_folder,
    choose_device,
    choose_dtype,
    in_package,
    load_base_model,
)
from degaml_kedro.llm.prompting import PromptError, render_chat
from degaml_kedro.llm.scoring import score_examples
from degaml_kedro.tasks.example import make_example
from tests.llm.helpers import tiny_base


def parameters(source: dict[str, Any], **rest: Any) -> BaseModelParameters:
    return BaseModelParameters.model_validate({"source": source, "device": "cpu", **rest})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    base = tiny_base()
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_computes_what_was_saved(saved: Path) -> None:
    base = load_base_model(parameters({"kind": "folder", "path": str(saved)}, dtype="float32"))
    batch = [make_example("Which one?", ["red", "green one"], 0)]
    how = (PromptParameters(), ScoringParameters(mode="text"))
    mine, theirs = score_examples(tiny_base(), batch, *how), score_examples(base, batch, *how)
    assert theirs[0].option_scores == pytest.approx(mine[0].option_scores, abs=1e-4)
    assert base.folder == saved
    assert not any(p.requires_grad for p in base.model.parameters())


def test_a_model_is_loaded_once_per_process(saved: Path) -> None:
    asked = parameters({"kind": "folder", "path": str(saved)}, dtype="float32")
    assert load_base_model(asked) is load_base_model(asked.model_copy())
    other = load_base_model(parameters({"kind": "folder", "path": str(saved)}, dtype="bfloat16"))
    assert other is not load_base_model(asked)
    assert other.dtype == torch.bfloat16


def test_the_fingerprint_follows_the_weights(saved: Path, tmp_path: Path) -> None:
    first = load_base_model(parameters({"kind": "folder", "path": str(saved)}))
    shutil.copytree(saved, tmp_path / "same")
    same = load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "same")}))
    assert same.fingerprint == first.fingerprint
    shutil.copytree(saved, tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    other = load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "other")}))
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["config.json"], "has no config.json"),
        (["model.safetensors"], "has no safetensors weights"),
        (["tokenizer.json"], "has no tokenizer .*tokenizer.save_pretrained"),
    ],
)
def test_an_incomplete_folder_is_named(
    saved: Path, tmp_path: Path, remove: list[str], message: str
) -> None:
    shutil.copytree(saved, tmp_path / "m")
    for name in remove:
        (tmp_path / "m" / name).unlink()
    with pytest.raises(ModelError, match=message):
        load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "m")}))


def test_pickled_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code when they are loaded and are refused"):
        load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "m")}))


def test_code_in_a_model_s_folder_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "m", tmp_path / "was_run"
    shutil.copytree(saved, folder)
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    for name, kinds in (
        ("config.json", {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Tokenizer", None]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": kinds}))
    # a template runs in a sandbox
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    base = load_base_model(parameters({"kind": "folder", "path": str(folder)}))
    with pytest.raises(PromptError, match="template of .* cannot be used: .*__class__.* unsafe"):
        render_chat([{"role": "user", "content": "Which?"}], base)
    assert not ran.exists()


def test_a_model_type_nobody_knows_is_named(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(ModelError, match=r"cannot be loaded: .*nonesuch"):
        load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "m")}))


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is not a folder"):
        load_base_model(parameters({"kind": "folder", "path": str(tmp_path / "none")}))
    with pytest.raises(ModelError, match="holds no file named x.gguf"):
        load_base_model(
            parameters({"kind": "folder", "path": str(tmp_path), "gguf_file": "x.gguf"})
        )
    (tmp_path / "x.gguf").write_bytes(b"not one")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load_base_model(
            parameters({"kind": "folder", "path": str(tmp_path), "gguf_file": "x.gguf"})
        )
    with pytest.raises(ModelError, match=r"no_such_package.* is not installed; run `pip install"):
        load_base_model(
            parameters({"kind": "package", "package": "no_such_package", "gguf_file": "x.gguf"})
        )
    with pytest.raises(ModelError, match="gguf holds no file named x.gguf"):
        load_base_model(parameters({"kind": "package", "package": "gguf", "gguf_file": "x.gguf"}))


@pytest.fixture
def carrier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the working folder that leaves a mark where it is run."""
    folder = tmp_path / "carrier"
    folder.mkdir()
    mark = tmp_path / "it-was-run"
    (folder / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (tmp_path / "beside.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("package", ["carrier.x", ".carrier", "", "carrier\n", "__main__.x"])
def test_a_package_is_a_name_without_dots(package: str, carrier: Path) -> None:
    with pytest.raises(ValidationError, match="package"):
        parameters({"kind": "package", "package": package, "gguf_file": "x.gguf"})


def test_looking_into_a_package_does_not_run_it(carrier: Path) -> None:
    (carrier / "x.gguf").write_bytes(b"GGUF")
    assert in_package("carrier", "x.gguf") == carrier / "x.gguf"
    # not through the checks of the parameters either
    assert in_package("carrier.x", "x.gguf") is None
    assert not (carrier.parent / "it-was-run").exists()
    assert "carrier" not in sys.modules


def test_a_package_without_files_of_its_own_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_package("sys", "x.gguf") is None
    for odd in (ImportError, ValueError, AttributeError):

        def fail(name: str, kind: type[Exception] = odd) -> None:
            raise kind(name)

        monkeypatch.setattr(module.importlib.util, "find_spec", fail)
        assert in_package("carrier", "x.gguf") is None


def test_nothing_outside_a_package_is_opened(carrier: Path) -> None:
    (carrier / "x.gguf").symlink_to(carrier.parent / "beside.gguf")
    source = {"kind": "package", "package": "carrier", "gguf_file": "x.gguf"}
    with pytest.raises(ModelError, match="not inside the package carrier"):
        load_base_model(parameters(source))


def test_a_package_of_links_into_an_installers_store_is_whole(
    tmp_path: Path, carrier: Path
) -> None:
    (carrier / "x.gguf").write_bytes(b"GGUF")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in carrier.iterdir():
        (linked / file.name).symlink_to(file)
    assert in_package("linked", "x.gguf") == linked / "x.gguf"


@pytest.mark.parametrize(
    "path", ["../beside.gguf", "a/../../b", "/etc/passwd", "a\\b", "C:x", "x\0", "x\n", ""]
)
@pytest.mark.parametrize("kind", ["package", "folder"])
def test_a_gguf_file_is_a_plain_relative_path(kind: str, path: str) -> None:
    source = {"kind": kind, "package" if kind == "package" else "path": "carrier"}
    assert parameters({**source, "gguf_file": "models/x.gguf"})
    with pytest.raises(ValidationError, match="gguf_file"):
        parameters({**source, "gguf_file": path})


@pytest.mark.parametrize("key", ["plain_prefix", "plain_suffix"])
def test_half_a_character_is_refused(key: str) -> None:
    assert PromptParameters.model_validate({key: "Frage: ä 😀"})
    with pytest.raises(ValidationError, match="surrogate"):
        PromptParameters.model_validate({key: "\ud800"})


def test_a_hub_that_cannot_be_reached_says_how_to_run_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def unreachable(place: str, **options: Any) -> None:
        asked.append((place, options))
        raise OSError("We couldn't connect to the hub to load the files.\nMore lines")

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", unreachable)
    source = {"kind": "hub", "id": "Qwen/Qwen2.5-0.5B-Instruct", "revision": "abc"}
    with pytest.raises(ModelError) as caught:
        load_base_model(parameters(source))
    text = str(caught.value)
    assert "Qwen/Qwen2.5-0.5B-Instruct (revision abc)" in text
    assert "couldn't connect" in text
    assert "hf download" in text
    assert "kind: folder" in text
    options = {"revision": "abc", "trust_remote_code": False}
    assert asked == [("Qwen/Qwen2.5-0.5B-Instruct", options)]


def test_a_hub_model_is_loaded_through_the_library(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transport is replaced by a local folder; the rest is what runs with a network."""
    calls: list[dict[str, Any]] = []
    real_tokenizer = module.AutoTokenizer.from_pretrained
    real_model = module.AutoModelForCausalLM.from_pretrained

    def tokenizer(place: str, **options: Any) -> Any:
        assert place == "someone/tiny"
        return real_tokenizer(str(saved))

    def model(place: str, **options: Any) -> Any:
        calls.append(options)
        return real_model(str(saved), **options)

    monkeypatch.setattr(module.AutoTokenizer, "from_pretrained", tokenizer)
    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", model)
    base = load_base_model(parameters({"kind": "hub", "id": "someone/tiny", "revision": "v1"}))
    assert base.name == "someone/tiny"
    assert calls[0]["revision"] == "v1"
    assert calls[0]["use_safetensors"] is True
    assert calls[0]["trust_remote_code"] is False


def test_a_converted_file_is_kept_and_a_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEGAML_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    broken = tmp_path / "broken.gguf"
    writer = GGUFWriter(broken, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((ModelError, ValueError, KeyError, OSError)):
        load_base_model(
            parameters({"kind": "folder", "path": str(tmp_path), "gguf_file": "broken.gguf"})
        )
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_of_two_that_convert_one_file_at_once_both_have_the_first_one_s_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEGAML_CACHE", str(tmp_path / "cache"))
    source = parameters({"kind": "folder", "path": str(tmp_path), "gguf_file": "tiny.gguf"})
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    real_tokenizer = module.AutoTokenizer.from_pretrained
    real_model, made = module._whole_model, []

    def model(place: str, **options: Any) -> Any:
        if "gguf_file" not in options:
            return real_model(place, **options)
        # the other one comes and ends while this one converts
        if not made:
            made.append(None)
            made.append(module._local_folder(source.source))
        return real_model(str(saved))

    monkeypatch.setattr(
        module.AutoTokenizer, "from_pretrained", lambda *_, **__: real_tokenizer(str(saved))
    )
    monkeypatch.setattr(module, "_whole_model", model)
    assert load_base_model(source).folder == made[1]
    assert list((tmp_path / "cache" / "models").iterdir()) == [made[1]]
    # others read a shared cache, too
    assert len({path.stat().st_mode for path in made[1].iterdir()}) == 1


def test_processes_of_a_launcher_share_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    for processes in (1, 2, 3):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert choose_device("cpu") == torch.device("cpu")
        if processes == 1:
            assert choose_device("auto") == torch.device("cuda")
            assert choose_device("cuda:0") == torch.device("cuda:0")
            continue
        with pytest.raises(ModelError, match=f"'cuda:0', which {processes} processes .*'auto'"):
            choose_device("cuda:0")
        if processes == 2:
            assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
        else:
            with pytest.raises(
                ModelError, match="3 processes were started.* each sees 2 of its GPUs"
            ):
                choose_device("auto")


def test_the_switch_for_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # set first, so that it is put back
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    model = BaseModelParameters(source=RandomModel(kind="random"), device="cpu")
    assert "deterministic" not in model.model_dump()
    try:
        load_base_model(model.model_copy(update={"deterministic": True}))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    cpu = torch.device("cpu")
    assert choose_device("auto") == cpu
    with pytest.raises(ModelError, match="model.device is 'cuda:1', but this machine has none"):
        choose_device("cuda:1")
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_dtype("auto", cpu) == (torch.bfloat16 if native else torch.float32)
    assert choose_dtype("float16", cpu) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = torch.device("cuda")
    assert choose_device("auto") == cuda
    for native, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        # every card can emulate it
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, n=native: including_emulation or n,
        )
        assert choose_dtype("auto", cuda) == dtype
