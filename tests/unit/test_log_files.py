"""Files of logs: compressed, torn, several, in folders, of kinds that are not read; and the job that converts them."""

import gzip
import json
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from calibrated_rl.api.logs import convert_logs
from calibrated_rl.cli import logs as job
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.reading import REPEATED, read_logs
from calibrated_rl.shift.sources import read_source
from tests.unit.test_jsonl import Echo
from tests.unit.test_log_formats import write_lines


def talk(text: str = "hi", reply: str = "so") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]}


def texts(*names: Path | str, **how: Any) -> list[str]:
    """The first words of each dialogue."""
    return [record.turns[0][1] for record in read_logs([str(name) for name in names], FileSettings(**how))[0]]


def write_table(file: Path, said: list[str]) -> None:
    table = pa.Table.from_pylist([talk(each) for each in said])
    if file.suffix == ".parquet":
        parquet.write_table(table, file)
        return
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


# --- which files -------------------------------------------------------------------------------------------


def test_several_files_and_patterns_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b", "a", "sub/c"):
        write_lines(tmp_path / f"{name}.jsonl", [talk(name)])
    assert texts(tmp_path / "b.jsonl", tmp_path / "*.jsonl") == ["b", "a"]
    assert texts(tmp_path / "**" / "*.jsonl") == ["a", "b", "sub/c"]
    assert texts(tmp_path) == ["a", "b", "sub/c"]
    with pytest.raises(UserError, match=r"no file matches .*\*\.csv"):
        texts(tmp_path / "*.csv")
    with pytest.raises(UserError, match="there is no file .*none.jsonl"):
        texts(tmp_path / "none.jsonl")
    write_lines(tmp_path / "[x].jsonl", [talk("brackets")])
    assert texts(tmp_path / "[x].jsonl") == ["brackets"], "a file that is there is no pattern"


def test_our_own_files_share_no_id(tmp_path: Path) -> None:
    for name in "ab":
        write_lines(tmp_path / f"{name}.jsonl", [{"id": 1, "turns": [{"side": "user", "text": name}]}])
    records, reading = read_logs([str(tmp_path)])
    assert len(records) == 1 and str(reading.problems[0]).endswith(
        f"id '1' occurred before, in line 1 of {tmp_path}/a.jsonl"
    )


def test_files_with_the_names_of_a_corpus_are_read_where_no_corpus_is(tmp_path: Path) -> None:
    for name in ("conversations", "users", "index"):
        (tmp_path / f"{name}.json").write_text(json.dumps([talk(name)]))
    (tmp_path / "state.json").write_text("{}")
    assert texts(tmp_path) == ["conversations", "index", "users"]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    said = {"id": "u", "conversation_id": "c", "speaker": "p", "text": "said", "reply-to": None}
    write_lines(corpus / "utterances.jsonl", [said])
    (corpus / "conversations.json").write_text('{"c": {}}')
    assert texts(tmp_path) == ["conversations", "said", "index", "users"]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_long_list_of_messages_may_be_the_first_of_many_lines(ending: str, tmp_path: Path) -> None:
    long = talk("x" * 70_000)["messages"]
    content = "".join(json.dumps(each) + "\n" for each in (long, talk("two")["messages"])).encode()
    file = tmp_path / f"x.{ending}"
    file.write_bytes(gzip.compress(content, mtime=0) if ending.endswith("gz") else content)
    assert texts(file) == ["x" * 70_000, "two"]
    for text in (
        json.dumps([talk("x" * 70_000), talk("two")]),
        f"[{json.dumps(talk('x' * 70_000))},\n{json.dumps(talk('two'))}]",
    ):
        file.write_bytes(gzip.compress(text.encode(), mtime=0) if ending.endswith("gz") else text.encode())
        assert texts(file) == ["x" * 70_000, "two"], "one value, on one line or on two"


def test_folders_of_datasets(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "saved" / split
        folder.mkdir(parents=True)
        write_table(folder / "data-00000-of-00002.arrow", [f"{split} 1"])
        write_table(folder / "data-00001-of-00002.arrow", [f"{split} 2"])
        write_table(folder / "cache-1.arrow", ["of another state"])
        files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in (1, 0)]
        (folder / "state.json").write_text(json.dumps({"_data_files": files}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    records, _ = read_logs([str(tmp_path / "saved")])
    assert [record.turns[0][1] for record in records] == ["train 2", "train 1", "test 2", "test 1"]
    assert records[-1].metadata == {"dataset_split": "test"} and records[-1].split is None
    assert texts(tmp_path / "saved" / "test") == ["test 2", "test 1"]
    (tmp_path / "saved" / "test" / "state.json").write_text("[]")
    with pytest.raises(UserError, match="state.json does not have the list '_data_files'"):
        texts(tmp_path / "saved")


def test_a_data_set_of_the_hub_is_read_from_its_cache_or_its_command_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="org/chats is no file .*hf download org/chats --repo-type dataset --local-dir chats"
    ):
        texts("org/chats")
    snapshot = tmp_path / "hub" / "datasets--org--chats" / "snapshots" / ("0" * 40)
    (snapshot / "data").mkdir(parents=True)
    write_table(snapshot / "data" / "train-00000-of-00001.parquet", ["cached"])
    (snapshot / "README.md").write_text("# chats")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    records, _ = read_logs(["org/chats"])
    assert records[0].turns[0][1] == "cached" and records[0].metadata == {"dataset_split": "train"}


# --- torn, empty, of other kinds ---------------------------------------------------------------------------

PACKED = gzip.compress("".join(json.dumps(talk(str(number))) + "\n" for number in range(1000)).encode(), mtime=0)
TWICE = f'{{"a": {json.dumps(talk("one"))},\n "a": {json.dumps(talk("two"))}}}'.encode()
TELLS: list[tuple[str, bytes, str]] = [
    ("x.jsonl.gz", PACKED[:-20], "x.jsonl.gz is a torn or damaged gzip file .*: copy or download it again"),
    ("x.jsonl.gz", PACKED[:1000] + b"\0\0" + PACKED[1002:], "is a torn or damaged gzip file"),
    ("x.jsonl.gz", gzip.compress(b" \n", mtime=0), "is empty below its gzip compression"),
    ("x.json", json.dumps([talk()] * 9, indent=1).encode()[:-9], "one JSON value that is torn or damaged: .* at line"),
    ("x.json", b'[\n"caf\xe9"]', "is JSON that is not UTF-8 at byte 7"),
    ("x.csv", b"dialogue_id,role,text\n1,user,caf\xe9\n", "CSV that is not UTF-8 .*iconv -f WINDOWS-1252"),
    ("x.csv", b"a,a\n1,2\n", "each column of a CSV needs a name of its own .* they are 'a', 'a'"),
    ("x.csv", b"dialogue_id,role,text\n", "contains no usable dialogue"),
    ("x.csv", b'dialogue_id,role,text\n1,user,"open\n', "x.csv:2: not CSV: unexpected end"),
    ("x.csv", b"dialogue_id,role,text\n1,user\n", "x.csv:2: it has 2 fields, and the header 3"),
    ("x.xlsx", b"PK\x03\x04abc", "is an Excel workbook: save the table as CSV, as with soffice"),
    ("x.zip", b"PK\x03\x04abc", "is a ZIP archive: unpack it first, as with unzip .*x.zip"),
    ("x.tar.gz", gzip.compress(b"a" * 257 + b"ustar" + b"\0" * 99, mtime=0), "is a tar archive: .*tar -xf"),
    ("x.db", b"SQLite format 3\x00..", "is an SQLite database: .*sqlite3 -header -csv"),
    ("x.pkl", b"\x80\x04\x95\x00", "a Python pickle, which is never loaded"),
    ("x.avro", b"Obj\x01..", "is an Avro file: .*avro-tools tojson"),
    ("x.pdf", b"%PDF-1.7", "is a PDF"),
    ("x.html", b"\n<!DOCTYPE html><p>", "is XML or HTML"),
    ("x.bin", bytes(range(1, 200)), "is a binary file of an unknown kind .first bytes 01 02 03"),
    (
        "x.jsonl",
        b'{"prompt": "a", "answer": "b"}\n',
        "JSON Lines of no format that is known: .*'prompt', 'answer'.*Known",
    ),
    ("x.json", TWICE, "x.json:1: the key 'a' occurs twice in one object"),
    ("x.txt", b"user: hi\n", "contains no usable dialogue; the first reason: .*:1: not JSON"),
    (
        "x.jsonl",
        b'{"messages": [{"role": "x", "content": "y"}]}',
        "read as OpenAI messages, contains no usable dialogue",
    ),
]


@pytest.mark.parametrize(("name", "content", "told"), TELLS)
def test_a_file_that_cannot_be_used_is_told_once_and_nothing_is_written(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=told) as refused:
        job.main(["convert", str(file), "--out", str(tmp_path / "out.jsonl")])
    assert "\n" not in str(refused.value) and str(file) in str(refused.value)
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_torn_table_is_told(name: str, tmp_path: Path) -> None:
    write_table(tmp_path / name, ["x"] * 50)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-300])
    with pytest.raises(UserError, match=f"{name} is a torn or damaged (Parquet|Arrow) file"):
        texts(tmp_path / name)


def test_tables_have_times_bytes_and_gaps(tmp_path: Path) -> None:
    rows = [
        {
            "conversation_id": 1.0,
            "role": "user",
            "text": "hi",
            "at": datetime(2026, 1, 2, tzinfo=UTC),
            "raw": b"\xff",
            "x": 1.5,
        },
        {"conversation_id": 1.0, "role": "assistant", "text": "so", "at": None, "raw": b"a", "x": float("nan")},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    (record,), _ = read_logs([str(tmp_path / "x.parquet")])
    assert record.id == "1" and record.turns == ((Side.USER, "hi"), (Side.POLICY, "so"))
    assert record.turn_metadata == (
        ({"speaker": "user", "at": "2026-01-02T00:00:00+00:00", "raw": "/w==", "x": 1.5},),
        ({"speaker": "assistant", "raw": "a"},),
    )


# --- the job, the reader, Python ---------------------------------------------------------------------------


def test_the_job_writes_what_the_reader_reads_and_says_what_it_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [talk("write to a@example.org"), {"messages": [{"role": "x", "content": "y"}]}, {**talk("hi"), "lang": "en"}]
    (tmp_path / "chats.jsonl.gz").write_bytes(gzip.compress(write_lines(tmp_path / "t", said).read_bytes()))
    assert job.main(["convert", "chats.jsonl.gz", "--to", "runs-format"]) == 1
    printed = capsys.readouterr().out
    assert "chats.jsonl.gz: OpenAI messages in gzip JSON Lines: 2 dialogues with 4 turns, 1 refused" in printed
    assert "chats.jsonl.gz:2: message 0: the role is 'x'" in printed and "lang (1)" in printed
    assert "personal data in 1 dialogues: 1 e-mail addresses; not masked" in printed
    assert printed.splitlines()[-1] == "chats.runs.jsonl: 2 dialogues written, 1 refused"
    with pytest.raises(UserError, match="chats.runs.jsonl is there already: name the result by --out"):
        job.main(["convert", "chats.jsonl.gz"])
    shares = {"held_out": 0.0, "monitor": 0.0, "tuning": 0.0}
    converted = JsonLines(JsonLines.Config(path="chats.runs.jsonl", **shares), task=Echo())
    directly = JsonLines(JsonLines.Config(path="chats.jsonl.gz", **shares), task=Echo())
    for one, other in zip(converted.read(Split.CALIBRATION), directly.read(Split.CALIBRATION), strict=True):
        assert (one.scenario, one.turns, one.annotations) == (other.scenario, other.turns, other.annotations)
    assert not converted.problems
    assert len(directly.problems) == 1
    assert job.main(["check", "chats.runs.jsonl", "--strict"]) == 0
    assert "2 dialogues with 4 turns fit, 0 refused" in capsys.readouterr().out


def test_addresses_as_ids_are_masked_and_told_apart(tmp_path: Path) -> None:
    said = [{"id": f"{who}@example.org", "turns": [{"side": "user", "text": who}]} for who in ("ann", "bob")]
    records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", said))], FileSettings(mask_personal_data=True))
    names = [blake2b(f"{who}@example.org".encode(), digest_size=8).hexdigest() for who in ("ann", "bob")]
    assert [(each.id, each.turns[0][1]) for each in records] == list(zip(names, ("ann", "bob"), strict=True))
    assert not reading.problems and reading.report.personal.dialogues == 2


def test_dialogues_that_differ_in_what_is_masked_stay_apart(tmp_path: Path) -> None:
    mask = FileSettings(mask_personal_data=True)
    addressed = [{"id": "a", **talk(f"I am {who}@example.org")} for who in ("ann", "bob")]
    nameless = [talk(f"I am {who}@example.org") for who in ("ann", "bob")]
    twice = [{"id": "jo@example.org", **talk(text)} for text in ("one", "two", "one")]
    records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", [*addressed, *nameless, *twice]))], mask)
    assert [each.turns[0][1] for each in records] == ["I am [email 1]"] * 4 + ["one", "two"]
    digest = blake2b(b"jo@example.org", digest_size=8).hexdigest()
    assert [each.id for each in records[:2]] == ["a", "a-2"] and len({each.id for each in records}) == 6
    assert [each.id for each in records[4:]] == [digest, f"{digest}-2"]
    assert reading.report.counts[REPEATED] == 1
    own = [{"id": "jo@example.org", "turns": [{"side": "user", "text": "hi"}]}] * 2
    problems = read_logs([str(write_lines(tmp_path / "y.jsonl", own))], mask)[1].problems
    assert "id '[email 1]' occurred before" in problems[0].reason


def test_masked_and_strict(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "x.jsonl", [talk("write to a@example.org"), {**talk("hi"), "lang": "en"}])
    out = tmp_path / "out.jsonl"
    done = convert_logs(file, out, mask_personal_data=True, strict=True)
    assert done.dialogues == 1 and "unknown key 'lang'" in done.problems[0].reason
    assert json.loads(out.read_text())["turns"][0]["text"] == "write to [email 1]"
    assert texts(file, mask_personal_data=True)[0] == "write to [email 1]"
    with pytest.raises(UserError, match="is one of the files that are read"):
        convert_logs([file, out], out)
    with pytest.raises(UserError, match="columns.*colour"):
        convert_logs(file, out, columns={"colour": "x"})
    with pytest.raises(UserError, match="format is 'sharegtp': choose auto, "):
        convert_logs(file, out, format="sharegtp")


def test_options_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "desk.csv").write_text("ticket,who,body\n1,anna,hi\n1,desk,so\n")
    arguments = ["convert", str(tmp_path / "desk.csv"), "--out", str(tmp_path / "out.jsonl"), "--policy", "desk"]
    assert job.main([*arguments, "--columns", "dialogue=ticket,side=who", "--columns", "text=body"]) == 0
    assert [turn["side"] for turn in json.loads((tmp_path / "out.jsonl").read_text())["turns"]] == ["user", "policy"]
    for wrong, told in (
        (["--columns", "ticket"], "'ticket' is no WHAT=COLUMN"), (["--columns", "colour=ticket"], "colour"),
        (["--columns", "text=missing"], "has no column 'missing'"), (["--format", "csv"], "invalid choice"),
        (["--format", "casino"], "nothing converts it"), (["--to", "csv"], "invalid choice"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=told):
            job.main([*arguments, *wrong])
    with pytest.raises(UserError, match="--strict: with --config, it is a setting of the config: logs.strict="):
        job.main(["check", "--config", "c.yaml", "--strict"])


def test_shift_is_measured_on_them_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    write_lines(tmp_path / "logs" / "a.jsonl", [talk("one")])
    write_lines(tmp_path / "logs" / "b.jsonl", [talk("two"), {"messages": 3}])
    for name in (tmp_path / "logs", tmp_path / "logs" / "*.jsonl"):
        found = read_source(str(name))
        assert [each.turns[0].text for each in found.dialogues] == ["one", "two"] and found.left_out == 1
