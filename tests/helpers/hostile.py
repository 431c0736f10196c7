"""Contents of damaged JSON files."""

FILES = {
    "empty": b"",
    "cut": b'{"a": ',
    "no text": b"\xff\xfe\x00",
    "list": b"[[1, 2]]",
    "null": b"null",
    "number": b"5",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
}
