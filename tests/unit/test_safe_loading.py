"""What is loaded runs nothing: no pickle from outside the run, no code of models; checksums and format versions."""

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.errors import UserError
from calibrated_rl.learner import checkpoint
from calibrated_rl.learner.config import LearnerConfig
from calibrated_rl.models.checks import check_folder
from calibrated_rl.models.shape import shape_of
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.storage.checksums import NAME, check_checksums, write_checksums
from tests.support.paths import ROOT

SOURCES = sorted(file for each in ("calibrated_rl", "research", "tools") for file in (ROOT / each).rglob("*.py"))

ALLOWED = {
    # Handles of GPU memory, from the learner of the same run to its engines, through Ray; no file is involved.
    "calibrated_rl/weight_sync/shared_memory.py": {"import pickle", "pickle.loads"},
    # Reads tables of logs.
    "calibrated_rl/logs/containers/csv.py": {"import csv"},
    "calibrated_rl/examples/persuasion_for_good/records.py": {"import csv"},
}
"""Everything in the package that reads or writes what could run code when it is read, by file."""
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "csv"}
"""``csv``: nothing writes tables for spreadsheets, so no cell can be a formula."""
UNSAFE_CALLS = {
    "csv.writer", "csv.DictWriter",
    "eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "torch.save",
    "torch.hub.load", "pickle.load", "pickle.loads", "os.system", "os.popen",
}  # fmt: skip
UNSAFE_METHODS = {"load_checkpoint", "read_pickle", "to_pickle", "to_csv", "write_csv", "add_safe_globals"}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def constants_of(call: ast.Call) -> dict[str, Any]:
    return {word.arg: word.value.value for word in call.keywords if word.arg and isinstance(word.value, ast.Constant)}


def unsafe_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES)
        elif isinstance(node, ast.Call):
            name, told = name_of(node.func), constants_of(node)
            if name == "torch.load" and told.get("weights_only") is True:
                yield "torch.load(weights_only)"
            elif name in UNSAFE_CALLS:
                yield name
            elif (method := name.rsplit(".", 1)[-1]) in UNSAFE_METHODS:
                yield method
            if told.get("allow_pickle") or told.get("trust_remote_code") or told.get("shell"):
                yield f"{name} with {told}"


def test_nothing_is_unpickled_but_what_is_listed() -> None:
    found = {
        str(file.relative_to(ROOT)): unsafe
        for file in SOURCES
        if (unsafe := set(unsafe_in(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("line", "unsafe"),
    [
        ("from pickle import loads", "import pickle"),
        ("torch.load(file)", "torch.load"),
        ("torch.load(file, weights_only=False)", "torch.load"),
        ("np.load(file, allow_pickle=True)", "np.load with {'allow_pickle': True}"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "AutoModel.from_pretrained with {'trust_remote_code'"),
        ("frame.to_csv(file)", "to_csv"),
        ("yaml.load(text)", "yaml.load"),
    ],
)
def test_the_search_finds_what_is_unsafe(line: str, unsafe: str) -> None:
    (found,) = unsafe_in(ast.parse(line))
    assert found.startswith(unsafe)


def test_models_are_loaded_from_safetensors_and_without_their_code() -> None:
    calls = [
        (f"{file.name}:{node.lineno}", name_of(node.func), constants_of(node), {word.arg for word in node.keywords})
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and name_of(node.func).endswith(("from_pretrained", "AsyncEngineArgs"))
    ]
    assert len(calls) >= 8
    for where, name, told, given in calls:
        assert told.get("trust_remote_code") is False, where
        if name == "AsyncEngineArgs":
            assert told.get("load_format") == "safetensors", where
        elif name.startswith("AutoModel"):
            assert told.get("use_safetensors") is True or "gguf_file" in given, where


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny", ["friday seven two"] * 4, 0, layers=1)


def with_code(tiny: Path, folder: Path, file: str, entry: dict[str, Any]) -> Path:
    """A copy of the model that brings code along, which leaves a file behind when it is run."""
    shutil.copytree(tiny, folder)
    told = json.loads((folder / file).read_text()) | entry
    (folder / file).write_text(json.dumps(told))
    ran = folder / "ran"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Mine: pass\n")
    return folder


def test_code_that_comes_with_a_model_is_not_run(tiny: Path, tmp_path: Path) -> None:
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"}}
    folder = with_code(tiny, tmp_path / "model", "config.json", config)
    with pytest.raises(UserError, match="of a kind that transformers does not know"):
        shape_of(folder)
    tokenizer = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "code.Mine"]}}
    other = with_code(tiny, tmp_path / "tokenizer", "tokenizer_config.json", tokenizer)
    try:
        assert read_tokenizer(other, "mine").__class__.__name__ != "Mine"
    except UserError as error:
        assert "model 'mine': the tokenizer in" in str(error)
    assert not (folder / "ran").exists() and not (other / "ran").exists()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (lambda f: (f / "b" / "c.bin").write_bytes(b"seven"), r"c\.bin is torn or altered"),
    "torn": (lambda f: (f / "a.json").write_bytes(b"fri"), r"a\.json is torn or altered"),
    "missing": (lambda f: (f / "a.json").unlink(), r"a\.json is missing"),
    "no checksums": (lambda f: (f / NAME).unlink(), f"has no {NAME}"),
    "a way out": (lambda f: (f / NAME).write_text("00  ../secret\n"), "not the checksum of a file in that folder"),
    "no checksum": (lambda f: (f / NAME).write_text("\x1b[2Jwhat\n"), r"'\\x1b\[2Jwhat' is not the checksum"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_files_that_are_not_as_they_were_written_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / "a.json").write_text("friday")
    (folder / "b" / "c.bin").write_bytes(b"Seven")
    (tmp_path / "secret").write_text("mine")
    write_checksums(folder)
    check_checksums(folder)
    damage, reason = DAMAGE[kind]
    damage(folder)
    with pytest.raises(UserError, match=reason):
        check_checksums(folder)


def test_a_trained_model_that_was_altered_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calibrated-0"
    shutil.copytree(tiny, folder)
    check_folder(folder, "made elsewhere, without checksums")
    write_checksums(folder)
    check_folder(folder, "calibrated-0")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors is torn or altered"):
        check_folder(folder, "calibrated-0")


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"format": checkpoint.FORMAT_VERSION + 1}, "learner.json: format version 4 is newer than this program's 3"),
        ({"format": checkpoint.FORMAT_VERSION - 1}, "learner.json: format version 2 is older than this program's 3"),
        ({"layout": {}}, "learner.json carries no format version"),
        ([], "learner.json does not contain a JSON object"),
    ],
)
def test_a_foreign_or_newer_checkpoint_is_refused_by_name(index: Any, reason: str, tmp_path: Path) -> None:
    (tmp_path / checkpoint.INDEX).write_text(json.dumps(index))
    write_checksums(tmp_path)
    nothing: Any = None
    with pytest.raises(UserError, match=reason):
        checkpoint.read(nothing, {}, nothing, LearnerConfig(), tmp_path)
