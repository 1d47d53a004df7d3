"""What a file of text is by its first bytes: UTF-8, another encoding of text, or no text at all."""

import codecs
import io
from typing import Any, BinaryIO, cast

from helm_megatron.data.errors import DataError

# The longer first: UTF-32's mark begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {
    b"\x1f\x8b": "gzip data",
    b"\xfd7zXZ\0": "xz data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"BZh91AY&SY": "bzip2 data",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PAR1": "Parquet",
    b"ARROW1": "Arrow data",
    b"%PDF-": "PDF",
    b"\x89PNG": "PNG",
}
_TAR = (257, b"ustar")
_HEAD = 512


def text_of(stream: Any, where: str) -> BinaryIO:
    """Return a stream of a text in UTF-8, whatever its byte-order mark says it is in.

    Args:
        stream: uncompressed; one that can be peeked into.
        where: the file's name.

    Raises:
        DataError: the first bytes are those of something else.
    """
    head = stream.peek(_HEAD)[:_HEAD]
    kind = next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None)
    if head[_TAR[0] :].startswith(_TAR[1]):
        kind = "a tar archive"
    if kind is not None:
        raise DataError(f"{where}: holds {kind}, not text: unpack it, or name it by what it is")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None:
        return stream
    return cast(BinaryIO, io.BufferedReader(_Transcoded(stream, encoding, where), 1 << 18))


class _Transcoded(io.RawIOBase):
    """A text in another encoding, read as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, where: str) -> None:
        self._stream, self._encoding, self._where = stream, encoding, where
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and not self._ended:
            data = self._stream.read(1 << 16)
            self._ended = not data
            try:
                self._left = self._decoder.decode(data, final=self._ended).encode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self._where}: not valid {self._encoding.upper()}") from error
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size
