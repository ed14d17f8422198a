"""The copy of a run in a store: whole or the one before, sent once, and never in the way of the run."""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrated_rl.config.load import load_config
from calibrated_rl.errors import UserError
from calibrated_rl.storage.run_copy import FILES, FORMAT, RunCopy
from calibrated_rl.storage.store_address import check_address
from tests.support.paths import MICRO
from tests.support.s3_server import S3Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-may-see")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with S3Server() as made:
        yield made


@pytest.fixture(params=["s3", "file"])
def address(request: pytest.FixtureRequest, server: S3Server, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    return s3_address(server)


def s3_address(server: S3Server) -> str:
    return server.address("some/prefix")


def make_run(folder: Path) -> Path:
    for name, content in {
        "config.yaml": "name: micro", "models/start/model.safetensors": "w" * 100_000, "models/again": "w" * 100_000,
        "replay/calibrated-0/segment-000001.arrow": "one", "replay/calibrated-0/deliveries.jsonl": "{}\n",
        "checkpoints/calibrated-0/update-000005/arm.json": "{}", "arms/start-0.json": "{}",
        ".lock": "process 1", "models/.policy.partial-3/half": "?", "summary.json.part": "?",
        "variants/a/config.yaml": "",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "empty").write_bytes(b"")
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    unwanted = re.compile(r"(.*/)?\..*|.*\.part|variants/.*")
    return {path: (folder / path).read_bytes() for path in paths if not unwanted.fullmatch(path)}


def copy_of(address: str, folder: Path, kept: int = 2) -> RunCopy:
    folder.mkdir(exist_ok=True)
    return RunCopy(address, "study/micro", folder, kept)


def fetched(address: str, folder: Path) -> dict[str, bytes]:
    shutil.rmtree(folder, ignore_errors=True)
    copy_of(address, folder).fetch()
    return content_of(folder)


def test_a_run_comes_back_on_another_machine(address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    here = make_run(tmp_path / "here")
    copy = copy_of(address, here)
    copy.fetch()  # there is no copy yet
    copy.send()
    found = fetched(address, tmp_path / "there")
    assert found == content_of(here) and len(found) == 8
    assert caplog.messages == ["fetched the run from the store: 8 files, 0.2 MiB"]
    # It goes on there, and its state is then the later one.
    there = tmp_path / "there"
    (there / "replay/calibrated-0/deliveries.jsonl").write_text("{}\n{}\n")
    copy_of(address, there).send()
    with pytest.raises(UserError, match="has a later state of this run than .*here"):
        copy_of(address, here).fetch()
    with pytest.raises(UserError, match="has a later state"):
        copy.send()
    assert fetched(address, tmp_path / "third") == content_of(there)
    copy_of(address, there).fetch()  # and goes on where it was


def test_what_is_there_is_not_sent_again_and_what_is_old_goes(server: S3Server, tmp_path: Path) -> None:
    here, address = make_run(tmp_path / "here"), s3_address(server)
    copy = copy_of(address, here)
    copy.send()
    files = {key for key in server.objects if "/files/" in key and not key.endswith("/")}
    assert len(files) == 6, "equal contents are one file"
    assert all(hashlib.sha256(server.objects[key]).hexdigest() == key.rpartition("/")[2] for key in files)
    server.puts.clear()
    (here / "replay/calibrated-0/segment-000002.arrow").write_text("two")
    copy_of(address, here).send()  # another process, which asks the store
    sent = sorted(key.rpartition("/")[2] for key in server.puts if not key.endswith("/"))
    assert len(sent) == 2 and sent[0].startswith("00000002-") and sent[1] == hashlib.sha256(b"two").hexdigest()
    (here / "models/start/model.safetensors").write_text("another")
    (here / "models/again").unlink()
    copy.send()
    server.puts.clear()
    copy.send()
    assert not server.puts, "nothing is new"
    (here / "arms/start-0.json").write_text("new")
    copy.send()
    old = hashlib.sha256(b"w" * 100_000).hexdigest()
    assert not any(key.endswith(old) for key in server.objects), "no manifest that is kept names it"
    assert sum("/manifests/0" in key for key in server.objects) == 2
    assert fetched(address, tmp_path / "there") == content_of(here)


def test_what_is_torn_is_refused_by_name_and_the_one_before_taken(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, address = make_run(tmp_path / "here"), s3_address(server)
    copy = copy_of(address, here)
    copy.send()
    first = content_of(here)
    (here / "arms/start-0.json").write_text('{"new": 1}')
    copy.send()
    (new,) = [key for key, content in server.objects.items() if content == b'{"new": 1}']
    whole = server.objects.pop(new)
    for harm in (None, b"", whole[:-1], whole.replace(b"1", b"2")):
        caplog.clear()
        if harm is not None:
            server.objects[new] = harm
        found = fetched(address, tmp_path / "there")
        assert found == first and "00000002-" in caplog.text and "arms/start-0.json is missing, torn" in caplog.text
    server.objects[new] = whole
    last, before = (key for key in sorted(server.objects, reverse=True) if "/manifests/0" in key)
    content = server.objects[last]
    server.objects[last] = content[:-1]
    caplog.clear()
    found = fetched(address, tmp_path / "there")
    assert found == first and "is torn or altered" in caplog.text
    server.objects[before] = b""
    with pytest.raises(UserError, match="no copy of it is complete"):
        fetched(address, tmp_path / "there")
    assert content_of(tmp_path / "there") == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": FORMAT + 1}, f"has the format {FORMAT + 1}; this version reads {FORMAT} only"),
        ({"format": None}, "has the format None"),
        ({"files": {"../outside": ["0" * 64, 1]}}, "names '../outside', which is no file of a run"),
        ({"files": {"/etc/passwd": ["0" * 64, 1]}}, "which is no file of a run"),
        ({"files": {"a": ["../" * 20, 1]}}, "which is no file of a run"),
    ],
)
def test_a_foreign_or_newer_manifest_is_refused_by_name(
    server: S3Server, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    address = s3_address(server)
    copy_of(address, make_run(tmp_path / "here")).send()
    (key,) = [key for key in server.objects if "/manifests/0" in key]
    content = json.dumps(json.loads(server.objects[key]) | change).encode()
    server.objects[f"{key.rpartition('/')[0]}/00000007-{hashlib.sha256(content).hexdigest()}.json"] = content
    with pytest.raises(UserError, match=words):
        fetched(address, tmp_path / "there")


@pytest.mark.slow
def test_a_store_out_of_reach_says_so_and_is_tried_again(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here, address = make_run(tmp_path / "here"), s3_address(server)
    copy = copy_of(address, here)
    server.down = True
    began = time.monotonic()
    with pytest.raises(OSError) as refused:
        copy.send()
    print(time.monotonic() - began, refused.value)
    assert "a-secret" not in str(refused.value)
    copy.fetch()
    assert caplog.messages[-1].startswith("the store cannot be reached, and the run continues from its folder: ")
    with pytest.raises(UserError, match="cannot be read, and the run may be there"):
        fetched(address, tmp_path / "there")
    server.down = False
    copy.send()
    assert fetched(address, tmp_path / "there") == content_of(here)


def test_files_that_change_while_they_are_sent(server: S3Server, tmp_path: Path) -> None:
    """What is appended goes by, a file that is cut ends the copy, and the copy before it stays."""
    here, address = make_run(tmp_path / "here"), s3_address(server)
    copy = copy_of(address, here)
    copy.send()
    before = content_of(here)
    growing = here / "replay/calibrated-0/deliveries.jsonl"
    growing.write_text("{}\n" * 5)
    write = copy._write

    def write_while(change: str | None) -> None:
        def changing(path: str, chunks: object) -> None:
            if path.startswith(f"{FILES}/"):
                growing.write_text(change) if change is not None else growing.open("a").write("torn")
            write(path, chunks)

        copy._write = changing  # type: ignore[method-assign]

    write_while("")
    with pytest.raises(OSError, match="was cut while it was sent"):
        copy.send()
    assert fetched(address, tmp_path / "there") == before
    growing.write_text("{}\n" * 5)
    write_while(None)
    copy.send()
    found = fetched(address, tmp_path / "there")
    assert found["replay/calibrated-0/deliveries.jsonl"] == b"{}\n" * 5


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("bucket/prefix", "write s3://BUCKET/PREFIX"),
        ("http://somewhere/x", "write s3://BUCKET/PREFIX"),
        ("s3://", "names no bucket"),
        ("file:///", "names no folder"),
        ("file://relative/path", "with three strokes"),
        ("gs://bucket?region=x", "unknown option 'region'"),
        ("s3://bucket?regoin=x", "unknown option 'regoin'"),
        ("s3://me:hunter2@bucket/x", "has credentials in it"),
        ("s3://bucket/x?access_key=me&secret_key=hunter2", "has credentials in it"),
        ("gs://token:hunter2@bucket/x", "has credentials in it"),
        ("s3://bucket/x?endpoint_override=me:hunter2@host", "has credentials in it"),
        ("s3://bucket/x?endpoint_override=me:hunter2%40host", "has credentials in it"),
        ("s3://bucket/x?scheme=ftp", "the option 'scheme' is 'ftp'; there are: http, https"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_starts(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        check_address(address)
    assert "hunter2" not in str(refused.value)
    with pytest.raises(UserError, match=r"training\.checkpoint_store"):
        load_config(MICRO, [f"training.checkpoint_store='{address}'"])
