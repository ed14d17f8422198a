"""Files of users are modules by their location: none shadows another, and other processes find the same."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from calibrated_rl.components import user_files
from calibrated_rl.components.component import build, import_path, located
from calibrated_rl.errors import UserError
from calibrated_rl.learner.losses.check import located as located_loss
from tests.support.paths import ROOT

THING = """
from dataclasses import dataclass

class Thing:
    @dataclass(frozen=True)
    class Config:
        size: "int" = 1

    place = {place!r}

    def __init__(self, config):
        self.config = config

    def where(self):
        import os
        return self.place, self.config.size, os.getpid()
"""


def write(file: Path, text: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text or THING.format(place=str(file)))
    return file


@pytest.mark.parametrize(
    "name",
    ["statistics.py", "random.py", "json.py", "v1.2.py", "my task.py", "2nd.py", "_x.py", "=y.py", "ä.py", "sys.py",
     "a_2fb.py", "user_files.py", "calibrated_rl.py", "class.py"],
)  # fmt: skip
def test_the_file_itself_is_loaded(name: str, tmp_path: Path) -> None:
    path = list(sys.path)
    for folder in ("a", "b", "a.b", "ä ö"):
        file = write(tmp_path / folder / name)
        write(file.with_suffix("") / "__init__.py", "Thing = None")
        thing = build(f"{file}:Thing", {"size": 2})
        assert thing.where()[:2] == (str(file), 2)
        assert import_path(f"{file}:Thing") is type(thing)
        assert pickle.loads(pickle.dumps(thing)).where() == thing.where()
    assert sys.path == path and user_files.is_user_file(type(thing).__module__)
    import json
    import random
    import statistics

    assert all(not str(module.__file__).startswith(str(tmp_path)) for module in (json, random, statistics))


def test_a_folder_does_not_shadow_the_standard_library(tmp_path: Path) -> None:
    write(tmp_path / "random.py", "raise RuntimeError('not this one')")
    file = write(tmp_path / "mine.py", "import random\n\nclass Thing:\n    draw = random.Random\n")
    assert import_path(f"{file}:Thing").draw(0).random() == pytest.approx(0.8444, abs=1e-4)


def test_one_file_is_one_module_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "mine.py")
    (tmp_path / "link.py").symlink_to(file)
    monkeypatch.chdir(tmp_path)
    found = {import_path(f"{name}:Thing") for name in (file, "mine.py", "./mine.py", "link.py")}
    assert len(found) == 1
    assert located("mine.py:Thing") == f"{file}:Thing" and located("json:loads") == "json:loads"
    assert located_loss(("mine.py:Thing", {})) == (f"{file}:Thing", {})
    assert located_loss("mine.py:Thing") == f"{file}:Thing"


def test_a_file_reaches_what_stands_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "words.py", "HELLO = ['hello']")
    write(tmp_path / "sub" / "more.py", "from ..words import HELLO as MORE")
    one = write(tmp_path / "one.py", "from .words import HELLO\nfrom .sub.more import MORE\nclass Thing: said = HELLO")
    two = write(tmp_path / "two.py", "from . import one\nclass Thing: said = one.HELLO")
    assert import_path(f"{one}:Thing").said is import_path(f"{two}:Thing").said is import_path(f"{one}:MORE")
    assert import_path(f"{tmp_path / 'words.py'}:HELLO") is import_path(f"{two}:Thing").said


BROKEN = [
    ("def f(:", "SyntaxError: invalid syntax .*mine.py:1: def f"),
    ("\n\n  x = 1", "IndentationError: unexpected indent .*mine.py:3: x = 1"),
    ("import nothere", "ModuleNotFoundError: No module named 'nothere' .*mine.py:1: import nothere"),
    ("from json import nothing", "ImportError: cannot import name 'nothing' .*mine.py:1"),
    ("def f():\n    return 1 / 0\nf()", r"ZeroDivisionError: division by zero .*mine.py:2: return 1 / 0"),
    ("import sys\nsys.exit(0)", r"it called sys.exit\(0\) .*mine.py:2"),
    ("import words", "No module named 'words' .*mine.py:1.*; words.py is in the same folder: write 'from .words"),
    ("from .absent import x", "No module named 'absent' .*mine.py:1"),
    ("from ..other import x", "mine.py:1.*a file can import the files of its own folder"),
    ("from .broken import x", "NameError: name 'oops' is not defined .*broken.py:1: oops"),
    ("a = 1\0", "SyntaxError: source code .* null bytes"),
    ("Thinq = 1", "mine.py has no 'Thing'; did you mean 'Thinq'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), BROKEN)
def test_a_file_that_cannot_be_imported_names_its_line(text: str, told: str, tmp_path: Path) -> None:
    write(tmp_path / "words.py", "x = 1")
    write(tmp_path / "broken.py", "oops")
    file = write(tmp_path / "mine.py", text)
    with pytest.raises(UserError, match=told) as refused:
        import_path(f"{file}:Thing")
    assert "\n" not in str(refused.value) and "user_files" not in str(refused.value)


def test_bytes_that_are_no_text_and_places_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("x = 'ä'".encode("latin-1"))
    (tmp_path / "folder.py").mkdir()
    for name, told in (
        ("latin.py:x", "SyntaxError: .*utf-8"), ("folder.py:x", "cannot be read .Is a directory"),
        ("none.py:x", "there is no file"), ("none.py:", "is not an import path"), ("none.py", "is not an import path"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            import_path(f"{tmp_path}/{name}")
    for name in ("nothere:x", "json.nothere:x", "calibrated_rl.nothere:x"):
        with pytest.raises(UserError, match="cannot be imported: No module named"):
            import_path(name)
    with pytest.raises(KeyboardInterrupt):
        import_path(f"{write(tmp_path / 'stop.py', 'raise KeyboardInterrupt')}:x")


def test_a_file_that_was_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    write(tmp_path / "mine.py"), write(tmp_path / "parts" / "shop.py")
    monkeypatch.chdir(tmp_path)
    for path, meant in (("mine", "mine.py"), ("./mine", "./mine.py"), ("parts.shop", "parts/shop.py")):
        with pytest.raises(UserError, match=f"did you mean '{meant}:Thing'"):
            import_path(f"{path}:Thing")
    for path in ("..", ".", "/", "./other"):
        with pytest.raises(UserError, match=r"is no import path: write package.module:Class or file.py:Class$"):
            import_path(f"{path}:Thing")


def test_another_process_finds_the_same_file(tmp_path: Path) -> None:
    thing = build(f"{write(tmp_path / 'v1.2.py')}:Thing", {"size": 7})
    (tmp_path / "thing").write_bytes(pickle.dumps(thing))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'thing')!r}, 'rb')).where()[:2])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.strip() == str((str(tmp_path / "v1.2.py"), 7)), done.stderr


DRIVER = """
import sys
import ray
from ray.cluster_utils import Cluster
from calibrated_rl.components.component import build, import_path

@ray.remote(num_cpus=0)
class Worker:
    def node(self):
        return ray.get_runtime_context().get_node_id()
    def given(self, thing):
        return thing.where()
    def loaded(self, path):
        return import_path(path)(import_path(path).Config()).where()[0]
    def same(self, thing, path):
        return type(thing) is import_path(path)
    def gives(self, path):
        return build(path, {"size": 5})

file = sys.argv[1]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"one": 1}})
try:
    cluster.add_node(num_cpus=1, resources={"two": 1})
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False,
             runtime_env={"env_vars": {"PYTHONPATH": sys.argv[2]}})
    path = f"{file}:Thing"
    thing = build(path, {"size": 3})
    workers = [Worker.options(resources={name: 1}).remote() for name in ("one", "two")]
    assert len(set(ray.get([w.node.remote() for w in workers]))) == 2
    for worker in workers:
        assert ray.get(worker.given.remote(thing))[:2] == (file, 3)
        assert ray.get(worker.given.remote(ray.put(thing)))[:2] == (file, 3)
        assert ray.get(worker.loaded.remote(path)) == file
        assert ray.get(worker.same.remote(thing, path))
        assert isinstance(ray.get(worker.gives.remote(path)), type(thing))
    print("both nodes")
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_workers_of_two_nodes_find_the_same_file(tmp_path: Path) -> None:
    file = write(tmp_path / "statistics.py")
    (tmp_path / "driver").mkdir()
    driver = write(tmp_path / "driver" / "driver.py", DRIVER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(driver), str(file), str(ROOT)],
        capture_output=True, text=True, cwd=tmp_path / "driver", env=environment, timeout=720,
    )  # fmt: skip
    assert done.stdout.strip().endswith("both nodes"), done.stderr[-2000:]
