"""Small datasets for examples and tests, as NumPy arrays: MNIST, digits, tiny Shakespeare.

    from amac_jax import datasets
    images = datasets.load("mnist")  # offline: the digits that scikit-learn ships
    text = datasets.load_text()      # offline: the help texts that Python ships

Downloads show a progress bar, are checked by their SHA-256 and kept in the cache,
$XDG_CACHE_HOME/amac_jax (~/.cache). The environment variable AMAC_JAX_DATA names a folder that is
looked at first. The extra `examples` brings what this needs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import sys
import tempfile
import threading
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

TIMEOUT = 10  # seconds until a mirror has answered, and from one packet to the next
MIRRORS = (  # the second is asked only if the first fails
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
SHA256 = {  # of the decompressed files, in the order of the fields of Images
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
GZIP_BYTES = dict(zip(SHA256, (9_912_422, 28_881, 1_648_877, 4_542), strict=True))
TEXT_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TEXT_BYTES = 1_115_394
MAX_BYTES = 1 << 26  # the largest array read_idx returns; MNIST's largest is 47 MB


class DataError(Exception):
    """Data that cannot be used: one line that names the file and says what is wrong with it."""


class NoNetwork(DataError):
    """No mirror delivered anything, so nothing is known to be wrong with the data."""


class Images(NamedTuple):
    """Grey images and labels; pixels use all of 0..255 in every set, so x / 127.5 - 1 fits all."""

    name: str
    train_images: np.ndarray  # (n, height, width) uint8, 0..255
    train_labels: np.ndarray  # (n,) int32
    test_images: np.ndarray  # (m, height, width) uint8, 0..255
    test_labels: np.ndarray  # (m,) int32


class Text(NamedTuple):
    """A text as numbers; `"".join(text.alphabet[i] for i in text.train)` spells it."""

    name: str
    alphabet: str  # the different characters of the text, in their order
    train: np.ndarray  # (n,) int32, the first 90 % of the text
    validation: np.ndarray  # (m,) int32, the rest


def load(name: str = "mnist", data_dir: Path | None = None) -> Images:
    """`load_mnist`, or `load_digits_split` if asked for or, with a line on stderr, if offline."""
    if name not in ("mnist", "digits"):
        raise ValueError(f"name must be 'mnist' or 'digits', got {name!r}")
    if name == "mnist":
        try:
            return load_mnist(data_dir)
        except NoNetwork as error:
            advice = "for MNIST offline, set AMAC_JAX_DATA to a folder with its four files"
            print(f"{error}; using scikit-learn's digits instead ({advice})", file=sys.stderr)
    return load_digits_split()


def load_mnist(data_dir: Path | None = None) -> Images:
    """The 60,000 + 10,000 images of 28 x 28, from the first of these places that applies.

    1. `data_dir`, else the folder in the environment variable AMAC_JAX_DATA: it, or a sub-folder
       `mnist`, must hold the four idx files, .gz or not.
    2. The cache, $XDG_CACHE_HOME/amac_jax/mnist (~/.cache if unset); what it lacks is downloaded.

    Raises: DataError if a file is missing, broken or not MNIST's; NoNetwork if no mirror answers.
    """
    given = data_dir or os.environ.get("AMAC_JAX_DATA")
    if given:
        folder = _complete_folder(Path(given), "data_dir" if data_dir else "AMAC_JAX_DATA")
        arrays = [read_idx(_path(folder, name), sha256=SHA256[name]) for name in SHA256]
    else:
        cache = _cache() / "mnist"
        arrays = [_read_cached(_path(cache, name), name) for name in SHA256]
    return Images("mnist", arrays[0], arrays[1].astype("i4"), arrays[2], arrays[3].astype("i4"))


def load_digits_split() -> Images:
    """The 1,797 digits of 8 x 8 that scikit-learn ships, as 1,437 + 360 with equal class shares."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = (np.asarray(part, np.int32) for part in load_digits(return_X_y=True))
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 16 is the largest
    train, test = train_test_split(range(1797), test_size=360, stratify=labels, random_state=0)
    return Images("digits", images[train], labels[train], images[test], labels[test])


def load_text(name: str = "shakespeare", data_dir: Path | None = None) -> Text:
    """Tiny Shakespeare or, if asked for or, with a line on stderr, if offline, Python's help texts.

    "shakespeare" is 1,115,394 characters, 65 different ones, from the first of these places that
    holds `tinyshakespeare/input.txt`: `data_dir`, else the folder in AMAC_JAX_DATA; the cache; the
    network. "python" is the language reference that `help("topics")` reads, about as long.

    Raises: DataError if the file is broken or has another content.
    """
    if name not in ("shakespeare", "python"):
        raise ValueError(f"name must be 'shakespeare' or 'python', got {name!r}")
    if name == "shakespeare":
        try:
            return _as_numbers("shakespeare", _shakespeare(data_dir).decode("ascii"))
        except NoNetwork as error:
            advice = "for Shakespeare, set AMAC_JAX_DATA to a folder with tinyshakespeare/input.txt"
            print(f"{error}; using Python's help texts instead ({advice})", file=sys.stderr)
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    return _as_numbers("python", text.encode("ascii", "ignore").decode("ascii"))


def read_idx(path: str | os.PathLike[str], *, sha256: str | None = None) -> np.ndarray:
    """An idx file of unsigned bytes with 1 to 3 axes, plain or gzip, as a uint8 array.

    Raises: DataError if it is anything else, or if its decompressed content has another digest.
    """
    return _decode_idx(lambda: open(path, "rb"), os.fspath(path), sha256)


def open_https(url: str) -> HTTPResponse:
    """The one function here that touches the network; https only, redirects included."""
    answer: Future[HTTPResponse] = Future()

    def ask():
        try:
            answer.set_result(urllib.request.build_opener(_HttpsOnly).open(url, timeout=TIMEOUT))
        except Exception as error:
            answer.set_exception(error)

    # In a thread, because urllib's own timeout starts anew with each of a host's many addresses.
    threading.Thread(target=ask, daemon=True).start()
    return answer.result(TIMEOUT)


class _HttpsOnly(urllib.request.HTTPHandler, urllib.request.FTPHandler):  # takes their places
    def http_open(self, req):
        raise OSError(f"{req.full_url} is not https")

    ftp_open = http_open


def _path(folder: Path, name: str) -> Path:
    plain, zipped = folder / name, folder / f"{name}.gz"
    # Not Path.is_file, which raises for a folder that may not be entered.
    return plain if os.path.isfile(plain) and not os.path.isfile(zipped) else zipped


def _complete_folder(root: Path, source: str) -> Path:
    for folder in (root, root / "mnist"):
        if all(os.path.isfile(_path(folder, name)) for name in SHA256):
            return folder
    raise DataError(f"{root} (from {source}): does not hold all of {', '.join(SHA256)}")


def _read_cached(path: Path, name: str) -> np.ndarray:
    def check(packed: bytes, url: str) -> None:
        _decode_idx(lambda: io.BytesIO(packed), url, SHA256[name])

    if not os.path.isfile(path):
        urls = [f"{mirror}{name}.gz" for mirror in MIRRORS]
        _write_atomically(path, _download(name, urls, GZIP_BYTES[name], check))
    try:
        return read_idx(path, sha256=SHA256[name])
    except DataError as error:
        raise DataError(f"{error}; delete it and it will be fetched again") from error


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not cache.is_absolute():  # without a home, expanduser returns "~/.cache"
        raise DataError(f"{cache}: not an absolute path; set XDG_CACHE_HOME to one")
    return cache / "amac_jax"


def _shakespeare(data_dir: Path | None) -> bytes:
    given = data_dir or os.environ.get("AMAC_JAX_DATA")
    place = Path("tinyshakespeare", "input.txt")
    for folder in ([Path(given)] if given else []) + [_cache()]:
        if os.path.isfile(folder / place):
            return _checked_text((folder / place).read_bytes, str(folder / place))

    def check(content: bytes, url: str) -> None:
        _checked_text(lambda: content, url)

    content = _download("tiny Shakespeare", [TEXT_URL], TEXT_BYTES, check)
    _write_atomically(_cache() / place, content)
    return content


def _checked_text(read: Callable[[], bytes], name: str) -> bytes:
    try:
        content = read()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
    if (found := hashlib.sha256(content).hexdigest()) != TEXT_SHA256:
        raise DataError(f"{name}: wrong content (SHA-256 {found[:8]}..., not {TEXT_SHA256[:8]}...)")
    return content


def _as_numbers(name: str, text: str) -> Text:
    characters, numbers = np.unique(np.frombuffer(text.encode(), np.uint8), return_inverse=True)
    train, validation = np.split(numbers.astype(np.int32), [int(0.9 * len(numbers))])
    return Text(name, "".join(map(chr, characters)), train, validation)


def _download(
    name: str, urls: list[str], size: int, check: Callable[[bytes, str], object]
) -> bytes:
    """The first answer that passes the check.

    Raises: DataError if answers come and all fail the check; NoNetwork if not one comes.
    """
    wrong, silent = [], None
    for url in urls:
        try:
            content = _fetch(url, name, size)
            check(content, url)
            return content
        except DataError as error:
            wrong.append(str(error))
        except (OSError, HTTPException) as error:
            silent = error
    if wrong:
        raise DataError("; ".join(wrong))
    raise NoNetwork(f"{name}: no mirror can be reached ({silent!r})")


def _fetch(url: str, name: str, size: int) -> bytes:
    from tqdm import tqdm  # here, because it is in an extra

    with (
        open_https(url) as response,
        tqdm.wrapattr(
            response, "read", response.length, desc=name, leave=False, disable=None
        ) as body,
    ):
        content = _read(body.read, 2 * size + 1)
    if len(content) > 2 * size:
        raise DataError(f"{url}: more than twice the size that {name} has")
    return bytes(content)


def _write_atomically(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inside the target's folder, hence on its file system, where replacing is atomic.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            Path(folder, "new").write_bytes(content)
            os.replace(Path(folder, "new"), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def _decode_idx(opener: Callable[[], BinaryIO], name: str, sha256: str | None) -> np.ndarray:
    try:
        with opener() as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            read = gzip.GzipFile(fileobj=file).read if zipped else file.read
            magic = _read(read, 4)  # two zeros, the type (8: unsigned bytes), the number of axes
            if magic not in (b"\0\0\x08\1", b"\0\0\x08\2", b"\0\0\x08\3"):
                raise DataError(f"{name}: not idx of unsigned bytes (begins with 0x{magic.hex()})")
            sizes = _read(read, 4 * magic[3])
            shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
            length = math.prod(shape)
            if not 0 < length <= MAX_BYTES:
                raise DataError(f"{name}: its header's shape {shape} is empty or too large")
            # One byte more than wanted: it reveals a surplus, and takes gzip on to its checksum.
            pixels = _read(read, length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be read ({error})") from error
    if len(pixels) != length:
        raise DataError(f"{name}: does not hold the {length} bytes that its header promises")
    digest = hashlib.sha256(magic + sizes)
    digest.update(pixels)
    if sha256 not in (None, found := digest.hexdigest()):
        raise DataError(f"{name}: wrong content (SHA-256 {found[:8]}..., not {sha256[:8]}...)")
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _read(read: Callable[[int], bytes], size: int) -> bytearray:
    """At most `size` bytes, in chunks, because one `read(size)` may allocate all of it at once."""
    content = bytearray()
    while len(content) < size and (chunk := read(min(1 << 16, size - len(content)))):
        content += chunk
    return content


def hold_out(data: Images, count: int) -> Images:
    """The same without its test images: the last `count` training images take their place."""
    total = len(data.train_images)
    if not 0 < count < total:
        raise DataError(f"{data.name}: cannot hold out {count} of {total} training images")
    images, labels = data.train_images, data.train_labels
    return Images(data.name, images[:-count], labels[:-count], images[-count:], labels[-count:])
