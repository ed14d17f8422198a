"""Files of kinds that are not read, by their first bytes, each with the command that makes a readable one of it."""

from calibrated_rl.logs.streams import LogFile

_UTF16 = "is UTF-16, not UTF-8: convert it, as with iconv -f UTF-16 -t UTF-8 FILE > utf8.txt"
_UNREAD = {
    b"\xff\xfe": _UTF16,
    b"\xfe\xff": _UTF16,
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it first, as with 7z x FILE",
    b"Rar!": "is a RAR archive: unpack it first, as with unrar x FILE",
    b"SQLite format 3\x00": "is an SQLite database: export a table, as with "
    "sqlite3 -header -csv FILE 'select * from TABLE' > logs.csv",
    b"Obj\x01": "is an Avro file: convert it, as with avro-tools tojson FILE > logs.jsonl",
    b"ORC": "is an ORC file: convert it, as with orc-contents FILE > logs.jsonl",
    b"\x89HDF": "is an HDF5 file: write its dialogues as JSON Lines",
    b"\x93NUMPY": "is a NumPy array: write its dialogues as JSON Lines",
    b"%PDF": "is a PDF: logs are read from data, not from pages",
    b"\xd0\xcf\x11\xe0": "is an old Office document: save the table as CSV, as with soffice --convert-to csv FILE",
    b"\x89PNG": "is a picture (PNG)",
    b"\xff\xd8\xff": "is a picture (JPEG)",
    b"\x7fELF": "is a program",
}
_ZIP = b"PK\x03\x04"
_TAR = 257
"""Offset of the word ``ustar``."""


def unread_kind(file: LogFile) -> str | None:
    """What ``file`` is, and the command that converts it; None if it may be text with dialogues."""
    head = file.head
    complaint = next((text for mark, text in _UNREAD.items() if head.startswith(mark)), None)
    if complaint is None and head.startswith(_ZIP):
        complaint = (
            "is an Excel workbook: save the table as CSV, as with soffice --convert-to csv FILE"
            if file.name.endswith(".xlsx")
            else "is a ZIP archive: unpack it first, as with unzip FILE"
        )
    if complaint is None and head[_TAR : _TAR + 5] == b"ustar":
        complaint = "is a tar archive: unpack it first, as with tar -xf FILE"
    if complaint is None and head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        complaint = "is a Python pickle, which is never loaded, because that runs code: write JSON Lines"
    if complaint is None and head[:2].count(0) == 1 and (head[0] or head[1]) >= 9:
        complaint = _UTF16
    if complaint is None and head.lstrip()[:14].lower().startswith((b"<?xml", b"<!doctype", b"<html")):
        complaint = "is XML or HTML, which has no one way to contain dialogues: write JSON Lines"
    if complaint is None and _is_binary(head):
        complaint = f"is a binary file of an unknown kind (first bytes {head[:8].hex(' ')}): write JSON Lines"
    return None if complaint is None else complaint.replace("FILE", str(file.path))


def _is_binary(head: bytes) -> bool:
    """Whether the first line, however it goes on, is no text: it has control characters that no text has."""
    first = head.lstrip()[:512].partition(b"\n")[0]
    return any(byte < 9 or 13 < byte < 27 for byte in first) and first[:1] not in (b"{", b"[")
