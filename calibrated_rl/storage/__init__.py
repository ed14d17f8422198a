"""Files: written whole or not at all, their checksums, the copy of a run in an object store."""
