"""The examples' data: whatever the disk or the network holds, the right arrays or a DataError."""

import gzip
import hashlib
import io
import os
import socket
import ssl
import struct
import sys
import threading
import tracemalloc
import urllib.error
import urllib.request
import urllib.response
import zlib
from email.message import Message
from http.client import BadStatusLine, IncompleteRead
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amac_jax.tools import datasets
from tests.helpers import SOAK

DataError, NoNetwork = datasets.DataError, datasets.NoNetwork
# What the fixture below puts out of reach.
OPEN_HTTPS, SHA256 = datasets.open_https, datasets.SHA256

REAL = os.environ.get("AMAC_JAX_DATA")


def idx(array):
    """An idx file as its published description has it, written without the code under test."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


_RNG = np.random.default_rng(0)
ARRAYS = dict(
    zip(
        datasets.SHA256,
        (
            _RNG.integers(0, 256, (6, 3, 2)),
            _RNG.integers(0, 10, 6),
            _RNG.integers(0, 256, (4, 3, 2)),
            _RNG.integers(0, 10, 4),
        ),
        strict=True,
    )
)
CONTENT = {name: idx(array) for name, array in ARRAYS.items()}
ZIPPED = {name: gzip.compress(content, mtime=0) for name, content in CONTENT.items()}
IMAGES, LABELS = list(CONTENT)[:2]
FIRST, SECOND = datasets.MIRRORS


class Response(io.BytesIO):
    """A body as the server sends it; nothing says how long it will be."""

    length: int | None = None
    received = 0

    def read(self, size: int | None = -1, /) -> bytes:
        body = super().read(size)
        self.received += len(body)
        return body


class Dying(Response):
    """A connection that is lost after 30 bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise IncompleteRead(b"")
        return super().read(30)


class Network(dict):
    """A stand-in for the network: address -> response to give or exception to raise."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def serve(self, mirror, **replaced):
        """`mirror` has the right files, except those replaced (by "images" or "labels")."""
        for name, body in ZIPPED.items():
            answer = replaced.get({IMAGES: "images", LABELS: "labels"}.get(name, ""), body)
            self[f"{mirror}{name}.gz"] = answer

    def __call__(self, url):
        self.asked.append(url)
        answer = self.get(url, urllib.error.URLError("Name or service not known"))
        if isinstance(answer, Exception):
            raise answer
        return Response(answer) if isinstance(answer, bytes) else answer


@pytest.fixture(autouse=True)
def network(monkeypatch, tmp_path):
    """No network, an empty home, and four tiny files in the place of MNIST's."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test touched the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("AMAC_JAX_DATA", raising=False)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    monkeypatch.setattr(datasets, "SHA256", digests)
    monkeypatch.setattr(datasets, "GZIP_BYTES", {name: len(ZIPPED[name]) for name in ZIPPED})
    network = Network()
    monkeypatch.setattr(datasets, "open_https", network)
    return network


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache" / "amac_jax" / "mnist"


def fill(folder, *, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name in CONTENT:
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(ZIPPED[name] if zipped else CONTENT[name])
    return folder


def error_of(call, *args, **kwargs):
    """The DataError of a call: its only line."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def assert_is_mnist(images):
    assert images.name == "mnist"
    for array, expected in zip(images[1:], ARRAYS.values(), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert [array.dtype for array in images[1:]] == [np.uint8, np.int32, np.uint8, np.int32]


# --- read_idx ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 3), (4, 3, 2)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_is_read_plain_and_zipped(tmp_path, shape, pack):
    array = np.random.default_rng(1).integers(0, 256, shape)
    (tmp_path / "file").write_bytes(pack(idx(array)))
    found = datasets.read_idx(tmp_path / "file")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.uint8
    found += 1  # writable: whoever augments in place may


GOOD = CONTENT[IMAGES]
BAD_FILES = {
    "empty": (b"", "not idx"),
    "text": (b"<html>404 Not Found</html>", "not idx"),
    "nonzero start": (b"\1" + GOOD[1:], "not idx"),
    "floats": (GOOD[:2] + b"\x0d" + GOOD[3:], "not idx"),
    "no axis": (GOOD[:3] + b"\0" + GOOD[4:], "not idx"),
    "four axes": (GOOD[:3] + b"\4" + GOOD[4:], "not idx"),
    "header cut between axes": (GOOD[:12], "does not hold the 18 bytes"),
    "header cut in an axis": (GOOD[:14], "(6, 3, 0) is empty"),
    "empty axis": (GOOD[:4] + bytes(4) + GOOD[8:], "empty"),
    "empty axis, huge ones": (GOOD[:4] + bytes(4) + b"\xff" * 8, "empty"),
    "payload cut short": (GOOD[:-1], "does not hold the 36 bytes"),
    "surplus": (GOOD + b"\0", "does not hold the 36 bytes"),
    "too large": (GOOD[:4] + b"\xff" * 12, "too large"),
    "gzip of text": (gzip.compress(b"text"), "not idx"),
    "gzip of surplus": (gzip.compress(GOOD + b"\0"), "does not hold"),
    "gzip cut in its header": (ZIPPED[IMAGES][:5], "cannot be read"),
    "gzip cut in its body": (ZIPPED[IMAGES][:30], "cannot be read"),
    "gzip cut in its checksum": (ZIPPED[IMAGES][:-6], "cannot be read"),
    "gzip of a wrong checksum": (ZIPPED[IMAGES][:-8] + bytes(4) + ZIPPED[IMAGES][-4:], "cannot be"),
    "gzip of no deflate": (ZIPPED[IMAGES][:10] + b"\xff" * 40, "cannot be read"),
    "gzip and a tail": (ZIPPED[IMAGES] + b"tail", "cannot be read"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_a_data_error_that_names_it(tmp_path, content, reason):
    path = tmp_path / "some-file"
    path.write_bytes(content)
    message = error_of(datasets.read_idx, path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_wrong_digest_absent_file_and_folder_are_data_errors(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    datasets.read_idx(path, sha256=hashlib.sha256(GOOD).hexdigest())
    assert "wrong content" in error_of(datasets.read_idx, path, sha256="0" * 64)
    assert "No such file" in error_of(datasets.read_idx, tmp_path / "absent")
    assert str(tmp_path) in error_of(datasets.read_idx, tmp_path)


@pytest.mark.parametrize("claimed", [36, 1 << 26], ids=["honest header", "largest header"])
def test_gzip_bomb_is_refused_without_being_inflated(tmp_path, claimed):
    bomb = gzip.compress(struct.pack(">HBBI", 0, 8, 1, claimed) + bytes(1 << 27))
    (tmp_path / "bomb").write_bytes(bomb)
    tracemalloc.start()
    try:
        assert "does not hold" in error_of(datasets.read_idx, tmp_path / "bomb")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * claimed + (4 << 20)


def test_a_large_claim_in_a_small_file_allocates_little(tmp_path):
    (tmp_path / "liar").write_bytes(struct.pack(">HBBI", 0, 8, 1, 1 << 26) + b"little")
    tracemalloc.start()
    try:
        assert "does not hold" in error_of(datasets.read_idx, tmp_path / "liar")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def inflated_size(content):
    """Of as much of it as can be inflated."""
    if content[:2] != b"\x1f\x8b":
        return len(content)
    size, rest = 0, content
    while rest[:2] == b"\x1f\x8b":  # a gzip file may be several, one after the other
        member = zlib.decompressobj(wbits=31)
        try:
            size += len(member.decompress(rest))
        except zlib.error:
            return size + 1032 * len(rest)  # the most that deflate can make of what is left
        rest = member.unused_data
    return size


def read_or_data_error(path, content):
    path.write_bytes(content)
    tracemalloc.start()
    try:
        outcome = datasets.read_idx(path)
    except DataError as error:
        outcome = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # What is in the file, a second time while it grows; two buffers of 64 KiB, and gzip's 128.
    assert peak < 2 * inflated_size(content) + (1 << 19)
    if isinstance(outcome, str):
        assert len(outcome.splitlines()) == 1
    else:
        assert outcome.dtype == np.uint8
        assert outcome.size > 0


FUZZ = settings(
    max_examples=50_000 if SOAK else 300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # one file, overwritten each time
)
STARTS = [b"", b"\x1f\x8b", b"\x1f\x8b\x08\0" + bytes(6), b"\0\0\x08", GOOD[:4]]


@FUZZ
@given(start=st.sampled_from(STARTS), rest=st.binary(max_size=200))
def test_random_bytes_give_an_array_or_a_data_error(tmp_path, start, rest):
    read_or_data_error(tmp_path / "file", start + rest)
    read_or_data_error(tmp_path / "file", gzip.compress(start + rest))


@FUZZ
@given(
    content=st.sampled_from([*CONTENT.values(), *ZIPPED.values()]),
    changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 200)),
)
def test_mutated_files_give_an_array_or_a_data_error(tmp_path, content, changes, cut):
    mutated = bytearray(content[:cut])
    for position, value in changes:
        if mutated:
            mutated[position % len(mutated)] = value
    read_or_data_error(tmp_path / "file", bytes(mutated))


# --- where load_mnist looks ---------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("folder", [".", "mnist"])
@pytest.mark.parametrize("source", ["data_dir", "AMAC_JAX_DATA"])
def test_given_folder_is_read_itself_or_its_mnist(tmp_path, monkeypatch, source, folder, zipped):
    fill(tmp_path / "given" / folder, zipped=zipped)
    monkeypatch.setenv("AMAC_JAX_DATA", str(tmp_path / "given"))
    if source == "data_dir":  # then the variable is not looked at
        monkeypatch.setenv("AMAC_JAX_DATA", str(tmp_path / "nowhere"))
    assert_is_mnist(datasets.load_mnist(tmp_path / "given" if source == "data_dir" else None))


@pytest.mark.parametrize("source", ["data_dir", "AMAC_JAX_DATA"])
def test_given_folder_that_lacks_a_file_is_an_error_and_not_a_fallback(
    tmp_path, monkeypatch, network, cache, source
):
    fill(cache)
    network.serve(FIRST)
    given = fill(tmp_path / "given")
    (given / f"{LABELS}.gz").unlink()
    monkeypatch.setenv("AMAC_JAX_DATA", str(given))
    message = error_of(datasets.load, "mnist", given if source == "data_dir" else None)
    assert f"{given} (from {source}): does not hold all of" in message
    assert network.asked == []


def test_given_folder_with_a_wrong_file_is_an_error_that_does_not_say_delete(tmp_path):
    given = fill(tmp_path)
    (given / f"{IMAGES}.gz").write_bytes(gzip.compress(GOOD[:-1] + b"\0"))
    message = error_of(datasets.load, "mnist", given)
    assert message.startswith(f"{given / IMAGES}.gz: wrong content")
    assert "delete" not in message


@pytest.mark.parametrize("variable", ["", None], ids=["empty", "unset"])
def test_cache_is_read_without_asking_the_network(monkeypatch, network, cache, variable):
    if variable is not None:
        monkeypatch.setenv("AMAC_JAX_DATA", variable)
    fill(cache, zipped=False)
    assert_is_mnist(datasets.load_mnist())
    assert network.asked == []


def test_cache_is_in_the_home_where_xdg_names_none(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    fill(tmp_path / "home" / ".cache" / "amac_jax" / "mnist")
    assert_is_mnist(datasets.load_mnist())


def test_relative_cache_is_an_error(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert "XDG_CACHE_HOME" in error_of(datasets.load_mnist)


@pytest.mark.parametrize("content", [ZIPPED[IMAGES][:-9], GOOD[:-1] + b"\0"], ids=["cut", "wrong"])
def test_bad_cached_file_is_an_error_that_says_delete(network, cache, content):
    network.serve(FIRST)
    fill(cache)
    (cache / f"{IMAGES}.gz").write_bytes(content)
    message = error_of(datasets.load, "mnist")
    assert message.startswith(f"{cache / IMAGES}.gz: ")
    assert "delete it" in message
    assert network.asked == []


# --- downloading --------------------------------------------------------------------------------


def test_download_fills_the_cache_once(network, cache, capsys, monkeypatch):
    network.serve(FIRST)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert_is_mnist(datasets.load("mnist"))
    assert network.asked == [f"{FIRST}{name}.gz" for name in CONTENT]
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        f"{name}.gz": body for name, body in ZIPPED.items()
    }
    assert IMAGES in capsys.readouterr().err  # the progress bar
    assert_is_mnist(datasets.load("mnist"))
    assert len(network.asked) == 4


def test_only_the_missing_file_is_fetched(network, cache):
    network.serve(FIRST)
    (fill(cache) / f"{LABELS}.gz").unlink()
    assert_is_mnist(datasets.load_mnist())
    assert network.asked == [f"{FIRST}{LABELS}.gz"]


WRONG_BODIES = {
    "another content": gzip.compress(GOOD[:-1] + b"\0"),
    "a web page": b"<html>Please log in</html>",
    "cut short": ZIPPED[IMAGES][:-5],
    "too large": ZIPPED[IMAGES] + bytes(2 * len(ZIPPED[IMAGES])),
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_wrong_body_sends_to_the_next_mirror(network, cache, body):
    network.serve(FIRST, images=body)
    network.serve(SECOND)
    assert_is_mnist(datasets.load_mnist())
    assert network.asked[:2] == [f"{FIRST}{IMAGES}.gz", f"{SECOND}{IMAGES}.gz"]
    assert (cache / f"{IMAGES}.gz").read_bytes() == ZIPPED[IMAGES]


@pytest.mark.parametrize("second", ["wrong too", "unreachable"])
@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_wrong_body_is_an_error_and_not_a_fallback(network, cache, body, second):
    network.serve(FIRST, labels=body)
    if second == "wrong too":
        network.serve(SECOND, labels=body)
    with pytest.raises(DataError, match=f"{FIRST}{LABELS}.gz: ") as caught:
        datasets.load("mnist")
    assert not isinstance(caught.value, NoNetwork)
    # What was there before stays, and nothing else is left behind.
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == {
        f"{IMAGES}.gz": ZIPPED[IMAGES]
    }


def test_body_is_not_read_beyond_twice_its_size(network):
    endless = Response(bytes(10_000))
    network.serve(FIRST, images=endless)
    assert "more than twice the size" in error_of(datasets.load_mnist)
    assert endless.received == 2 * len(ZIPPED[IMAGES]) + 1
    assert endless.closed


FAILURES = {
    "no name": urllib.error.URLError(socket.gaierror(-2, "Name or service not known")),
    "timeout": TimeoutError("timed out"),
    "reset": ConnectionResetError("Connection reset by peer"),
    "certificate": urllib.error.URLError(ssl.SSLCertVerificationError("self-signed")),
    "status": urllib.error.HTTPError("https://x", 403, "Forbidden", Message(), None),
    "no HTTP": BadStatusLine("SSH-2.0"),
    "lost halfway": Dying,
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_no_mirror_reached_gives_digits_and_one_line(network, cache, capsys, failure):
    (fill(cache) / f"{IMAGES}.gz").unlink()
    before = sorted(cache.iterdir())
    for mirror in datasets.MIRRORS:
        network.serve(mirror, images=failure(ZIPPED[IMAGES]) if failure is Dying else failure)
    images = datasets.load("mnist")
    assert images.name == "digits"
    assert network.asked == [f"{FIRST}{IMAGES}.gz", f"{SECOND}{IMAGES}.gz"]
    assert sorted(cache.iterdir()) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "\r" not in err  # bars are for terminals
    line = err
    assert IMAGES in line
    assert "digits" in line
    assert "AMAC_JAX_DATA" in line


def test_no_mirror_reached_is_no_network_to_load_mnist():
    with pytest.raises(NoNetwork, match=f"{IMAGES}: no mirror can be reached"):
        datasets.load_mnist()


def test_unreachable_mirror_sends_to_the_next(network, capsys):
    network.serve(SECOND)
    assert_is_mnist(datasets.load("mnist"))
    assert "digits" not in capsys.readouterr().err


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["write", "replace"])
def test_failing_write_leaves_the_old_file_alone(network, cache, monkeypatch, stage, failure):
    network.serve(FIRST)
    target = fill(cache) / f"{IMAGES}.gz"

    def fail(*args):
        raise failure

    def fail_halfway(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise failure

    if stage == "write":
        monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    else:
        monkeypatch.setattr(os, "replace", fail)
    # As if the file had appeared, from another process, after it was missed.
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: path != target and isfile(path))
    with pytest.raises(DataError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        datasets.load("mnist")
    assert network.asked == [f"{FIRST}{IMAGES}.gz"]
    if isinstance(failure, OSError):
        assert str(caught.value) == f"{target}: cannot be written (No space left on device)"
    assert {path.name for path in cache.iterdir()} == {f"{name}.gz" for name in CONTENT}
    assert target.read_bytes() == ZIPPED[IMAGES]


def test_cache_that_cannot_be_made_is_an_error(network, tmp_path):
    network.serve(FIRST)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "cannot be written" in error_of(datasets.load, "mnist")


class Wire:
    """The exchange with a server, replaced by canned answers: a redirection, then a body."""

    class Answer(urllib.response.addinfourl):
        msg = "canned"

    def __init__(self, monkeypatch, location):
        self.asked, self.location = [], location
        handlers = (
            urllib.request.HTTPSHandler,
            urllib.request.HTTPHandler,
            urllib.request.FTPHandler,
        )
        for handler, method in zip(handlers, ("https_open", "http_open", "ftp_open"), strict=True):
            monkeypatch.setattr(handler, method, lambda _, request: self.exchange(request))
        monkeypatch.setattr(urllib.request, "getproxies", dict)

    def exchange(self, request):
        self.asked.append((request.full_url, request.timeout))
        headers = Message()
        headers["Location"] = self.location
        status = 302 if len(self.asked) == 1 else 200
        return self.Answer(Response(b"body"), headers, request.full_url, status)


def test_https_redirect_is_followed(monkeypatch):
    wire = Wire(monkeypatch, "https://b/")
    assert OPEN_HTTPS("https://a/").read() == b"body"
    assert wire.asked == [("https://a/", 10), ("https://b/", 10)]


@pytest.mark.parametrize("location", ["http://b/", "ftp://b/"])
def test_no_other_address_or_redirect_is_opened(monkeypatch, location):
    wire = Wire(monkeypatch, location)
    with pytest.raises(OSError, match="b/ is not https"):
        OPEN_HTTPS(location)
    assert wire.asked == []
    with pytest.raises(OSError, match="b/ is not https"):
        OPEN_HTTPS("https://a/")
    assert wire.asked == [("https://a/", 10)]
    assert all(mirror.startswith("https://") for mirror in datasets.MIRRORS)


def test_a_host_that_swallows_packets_is_given_up_in_time(monkeypatch):
    """Each address of such a host takes urllib's whole timeout, and Google's hosts have 16."""
    opened = threading.Event()
    monkeypatch.setattr(datasets, "TIMEOUT", 0.05)
    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", lambda *_: opened.wait(20))
    with pytest.raises(TimeoutError):
        OPEN_HTTPS("https://a/")
    opened.set()  # lets the thread end


# --- the data sets themselves -------------------------------------------------------------------


def test_load_knows_two_names():
    with pytest.raises(ValueError, match="name must be 'mnist' or 'digits', got 'cifar'"):
        datasets.load("cifar")


def test_digits_split_is_disjoint_complete_stratified_and_fixed(network):
    from sklearn.datasets import load_digits

    split = datasets.load("digits")
    assert network.asked == []
    assert split.train_images.shape == (1437, 8, 8)
    assert split.test_images.shape == (360, 8, 8)
    assert [array.dtype for array in split[1:]] == [np.uint8, np.int32, np.uint8, np.int32]

    # All 1,797 are different, so that as many different rows here mean that none is in both parts.
    pixels, labels = load_digits(return_X_y=True)
    images = np.concatenate([split.train_images, split.test_images]).reshape(1797, 64)
    rows = np.column_stack([images, np.concatenate([split.train_labels, split.test_labels])])
    expected = np.column_stack([np.floor(np.asarray(pixels) * 255 / 16 + 0.5), labels])
    assert len(np.unique(rows, axis=0)) == 1797
    np.testing.assert_array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))

    shares = np.bincount(np.asarray(labels)) * 360 / 1797
    assert np.all(np.abs(np.bincount(split.test_labels) - shares) <= 1)
    for array, again in zip(split[1:], datasets.load_digits_split()[1:], strict=True):
        np.testing.assert_array_equal(array, again)


def test_held_out_images_are_the_last_of_training(tmp_path):
    mnist = datasets.load_mnist(fill(tmp_path))
    train_images, train_labels, test_images, test_labels = datasets.hold_out(mnist, 2)[1:]
    images, labels = ARRAYS[IMAGES], ARRAYS[LABELS]
    np.testing.assert_array_equal(train_images, images[:4])
    np.testing.assert_array_equal(train_labels, labels[:4])
    np.testing.assert_array_equal(test_images, images[4:])
    np.testing.assert_array_equal(test_labels, labels[4:])
    for count in (0, 6):
        assert "hold out" in error_of(datasets.hold_out, mnist, count)


def holds_mnist(root):
    return any(next(Path(root, sub).glob(f"{IMAGES}*"), None) for sub in (".", "mnist"))


@pytest.mark.skipif(
    not (REAL and holds_mnist(REAL)), reason="AMAC_JAX_DATA names no folder with MNIST in it"
)
def test_real_mnist(monkeypatch):
    monkeypatch.setattr(datasets, "SHA256", SHA256)
    monkeypatch.setenv("AMAC_JAX_DATA", REAL)
    mnist = datasets.load("mnist")
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    # The class counts known from the literature.
    assert np.bincount(mnist.train_labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(mnist.test_labels)[:2].tolist() == [980, 1135]


# --- texts -----------------------------------------------------------------------------------

LINES = b"To be, or not to be\n" * 20


@pytest.fixture
def lines(monkeypatch):
    """A short text in the place of Shakespeare's."""
    monkeypatch.setattr(datasets, "TEXT_SHA256", hashlib.sha256(LINES).hexdigest())
    monkeypatch.setattr(datasets, "TEXT_BYTES", len(LINES))


def assert_is_lines(text):
    assert text.name == "shakespeare"
    assert text.alphabet == "".join(sorted(set(LINES.decode())))
    assert (len(text.train), len(text.validation)) == (360, 40)
    spelt = [text.alphabet[number] for number in np.concatenate([text.train, text.validation])]
    assert "".join(spelt) == LINES.decode()
    assert text.train.dtype == text.validation.dtype == np.int32


@pytest.mark.usefixtures("lines")
def test_a_text_is_read_from_a_given_folder(tmp_path, network):
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(LINES)
    assert_is_lines(datasets.load_text(data_dir=tmp_path))
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(LINES[1:])
    message = error_of(datasets.load_text, data_dir=tmp_path)
    assert message.startswith(f"{tmp_path}/tinyshakespeare/input.txt: wrong content")
    assert network.asked == []


@pytest.mark.usefixtures("lines")
def test_a_text_is_fetched_once_where_the_given_folder_has_none(tmp_path, network):
    network[datasets.TEXT_URL] = LINES
    assert_is_lines(datasets.load_text(data_dir=tmp_path))
    assert_is_lines(datasets.load_text())
    assert network.asked == [datasets.TEXT_URL]


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize("body", [b"<html>", 3 * LINES], ids=["another", "too long"])
def test_a_wrong_text_is_an_error_and_is_not_kept(tmp_path, network, body):
    network[datasets.TEXT_URL] = body
    assert datasets.TEXT_URL in error_of(datasets.load_text)
    assert not list((tmp_path).rglob("input.txt"))


def test_offline_the_text_is_pythons(capsys):
    text = datasets.load_text()
    assert text.name == "python"
    assert "no mirror can be reached" in capsys.readouterr().err
    assert len(text.train) > 300_000
    assert "import" in "".join(text.alphabet[number] for number in text.train)
    with pytest.raises(ValueError, match="name must be 'shakespeare' or 'python', got 'milton'"):
        datasets.load_text("milton")
