"""Data sets: right bytes or an error, whatever server, disk or manifest do (rows 18-22 of the fault matrix)."""

import hashlib
import http.server
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile

import pytest

from spectral_core import manifest, transfer
from spectral_core.core import DataError, RunError
from spectral_core.manifest import fetch, list_datasets, read_manifest

DATA = bytes(range(256)) * 4096  # 1 MB: several blocks, so that a cut falls into the middle
FACTS = {"title": "toy", "licence": "CC0", "citation": "none", "chapters": [], "where": "a test"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    "Serves DATA in the manner that the path names; `asked` lists (path, Range header) of every request."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.url = [], f"http://127.0.0.1:{self.server_port}"

    def tries(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def reply(self, body: bytes, status: int = 200, length: int | None = None, **headers: str):
        self.send_response(status)
        for name, value in headers.items(): self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        getattr(self, self.path.strip("/").split(".")[0].split("/")[-1])(self.server.tries(self.path))

    def good(self, _): self.reply(DATA)
    def wrong(self, _): self.reply(DATA[:-1] + b"!")
    def absent(self, _): self.reply(b"no such file", 404)
    def page(self, _): self.reply(b"\n<!DOCTYPE html><html>please log in</html>")
    def moved(self, _): self.reply(b"", 302, Location="/page")
    def twice(self, n): self.reply(b"busy", 500) if n <= 2 else self.reply(DATA)
    def busy(self, _): self.reply(b"busy", 500)
    def stalls(self, _): self.reply(DATA[:1000], length=len(DATA)), threading.Event().wait(0.5)

    def cut(self, n):
        "Closes halfway at the first try; goes on from there when asked for a range."
        if n == 1: return self.reply(DATA[: len(DATA) // 2], length=len(DATA))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.reply(DATA[start:], 206, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")

    def always_cut(self, _): self.reply(DATA[: len(DATA) // 2], length=len(DATA))

    def no_range(self, n):
        "Closes halfway at the first try and knows no ranges."
        self.reply(DATA[: len(DATA) // 2], length=len(DATA)) if n == 1 else self.reply(DATA)


@pytest.fixture(scope="module")
def running():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(running):
    running.asked.clear()
    return running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "An empty cache, no mirror, no waiting between retries."
    for name in ("SPECTRAL_MIRROR", "SPECTRAL_OFFLINE"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def toy(tmp_path):
    "Writes a manifest called toy with one entry per keyword dictionary, and returns its path."

    def write(*entries: dict, **keys):
        known = {"path": "flux.bin", "sha256": sha256(DATA), "bytes": len(DATA)}
        (tmp_path / "toy.json").write_text(json.dumps(FACTS | {"files": [known | entry for entry in entries]} | keys))
        return tmp_path / "toy.json"

    return write


def left(cache) -> list[str]:
    "Names of all files in the cache, hidden ones too, but for the lock and the memory of hashes."
    return sorted(f.name for f in cache.rglob("*") if f.is_file() and f.name not in (".lock", "hashes.json"))


# ------------------------------------------------------------------ what a manifest promises


@pytest.mark.parametrize("name", [row["name"] for row in list_datasets()])
def test_shipped_manifest_is_complete(name):
    one = read_manifest(name)
    assert all(one[key] for key in ("title", "licence", "citation", "where", "chapters"))
    assert set(one["chapters"]) <= {1, 2, 3, 4, 5}
    assert sum(map(bool, (one["files"], one["datasets"], one["pattern"]))) == 1
    for entry in one["files"]:
        assert (entry["sha256"] is None) == (entry["bytes"] is None)
        assert entry["sha256"] or entry["url"], "a file with neither hash nor address can be neither checked nor had"


def test_every_chapter_has_data_sets():
    assert {chapter for row in list_datasets() for chapter in row["chapters"]} == {1, 2, 3, 4, 5}


@pytest.mark.real
def test_mirror_holds_what_the_manifests_say(mirror, monkeypatch):
    monkeypatch.setenv("SPECTRAL_MIRROR", str(mirror))
    names = [row["name"] for row in list_datasets() if (mirror / row["name"]).is_dir()]
    assert len(names) >= 28
    for name in names:
        files = fetch(name, offline=True)
        assert len(files) == len(read_manifest(name)["files"])
        assert all(file.is_relative_to(mirror) for file in files), "a mirror folder is used in place"


def test_mistyped_name_is_answered_with_the_nearest():
    with pytest.raises(DataError, match="did you mean 'sdss_sky_fibers'"): fetch("sdss_sky_fibres")
    with pytest.raises(DataError, match="no data set 'qqq'; `spectral-core list`"): fetch("qqq")


def test_survey_without_a_file_list_says_where_its_files_are():
    with pytest.raises(DataError, match="spec-{PLATE:04d}"): fetch("sdss_spec_lite")


@pytest.mark.parametrize("broken", [
    "[]", "{", json.dumps(FACTS | {"surprise": 1}), json.dumps({"title": "no other facts"}),
    json.dumps(FACTS | {"files": [{"path": "a", "sha256": "abc"}]}),
    json.dumps(FACTS | {"files": [{"path": "a", "sha265": "0" * 64}]}),
    json.dumps(FACTS | {"files": [{"path": "a", "url": "http://example.org/a"}]}),
    json.dumps(FACTS | {"files": [{"path": "a"}, {"path": "a"}]}),
])
def test_broken_manifest_is_refused(tmp_path, broken):
    (tmp_path / "broken.json").write_text(broken)
    with pytest.raises(DataError, match="broken.json"): read_manifest(tmp_path / "broken.json")


# ------------------------------------------------------------------ downloads


def test_download_then_cache(server, toy, cache):
    one = toy({"url": f"{server.url}/good"}, {"path": "sub/again.bin", "url": f"{server.url}/good.2"})
    files = fetch(one, progress=False)
    assert [file.read_bytes() for file in files] == [DATA, DATA]
    assert files == [cache / "toy/flux.bin", cache / "toy/sub/again.bin"]
    assert fetch(one, progress=False) == files
    assert len(server.asked) == 2, "the second call asks nobody"


def test_progress_bar_counts_bytes(server, toy, capsys):
    fetch(toy({"url": f"{server.url}/cut.bar"}))
    assert "toy: 100%" in capsys.readouterr().err


def test_fault_18_wrong_bytes(server, toy, cache):
    with pytest.raises(DataError, match="hash"): fetch(toy({"url": f"{server.url}/wrong"}), progress=False)
    assert left(cache) == []
    assert server.tries("/wrong") == 1 + transfer.RETRIES


def test_fault_18_damaged_cache_is_repaired(server, toy, cache):
    one = toy({"url": f"{server.url}/good"})
    [file] = fetch(one, progress=False)
    for at in (0, len(DATA) // 2, len(DATA) - 1):
        damaged = bytearray(DATA)
        damaged[at] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="expected"): fetch(one, offline=True)
        assert fetch(one, progress=False)[0].read_bytes() == DATA


def test_fault_18_truncated_mirror_file(toy, tmp_path, monkeypatch):
    (tmp_path / "mirror/toy").mkdir(parents=True)
    (tmp_path / "mirror/toy/flux.bin").write_bytes(DATA[:-1])
    monkeypatch.setenv("SPECTRAL_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(DataError, match=f"{len(DATA) - 1} bytes, expected {len(DATA)}"): fetch(toy({}))


def test_fault_19_resumes_where_it_was_cut(server, toy, cache):
    assert fetch(toy({"url": f"{server.url}/cut"}), progress=False)[0].read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={len(DATA) // 2}-"]
    assert left(cache) == ["flux.bin"]


def test_fault_19_without_ranges_begins_anew(server, toy):
    assert fetch(toy({"url": f"{server.url}/no_range"}), progress=False)[0].read_bytes() == DATA


def test_fault_19_unknown_hash_is_never_spliced(server, toy):
    entry = {"url": f"{server.url}/no_range.2", "sha256": None, "bytes": None}
    with pytest.warns(UserWarning, match="trusting"): assert fetch(toy(entry), progress=False)[0].read_bytes() == DATA
    assert [wanted for _, wanted in server.asked] == [None, None]


def test_fault_19_cut_every_time(server, toy, cache):
    with pytest.raises(DataError, match="toy"): fetch(toy({"url": f"{server.url}/always_cut"}), progress=False)
    assert not (cache / "toy/flux.bin").exists()
    assert server.tries("/always_cut") == 1 + transfer.RETRIES


def test_fault_19_stalled(server, toy, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", (1.0, 0.1))
    monkeypatch.setattr(transfer, "RETRIES", 1)
    start = time.monotonic()
    with pytest.raises(DataError, match="timed out"): fetch(toy({"url": f"{server.url}/stalls"}), progress=False)
    assert time.monotonic() - start < 20, "two tries of 0.1 s, not of the default"


def test_fault_19_busy_server(server, toy):
    assert fetch(toy({"url": f"{server.url}/twice"}), progress=False)[0].read_bytes() == DATA
    assert server.tries("/twice") == 3
    with pytest.raises(DataError, match="500"): fetch(toy({"path": "b", "url": f"{server.url}/busy"}), progress=False)


def test_fault_19_unreachable_server_is_not_asked_for_every_file(server, toy):
    entries = [{"path": f"{i}", "url": f"{server.url}/busy.{i}"} for i in range(50)]
    with pytest.raises(DataError, match="50 of 50"): fetch(toy(*entries), progress=False)
    assert {path for path, _ in server.asked} == {"/busy.0"}


@pytest.mark.parametrize(("path", "words"), [("absent", "404"), ("page", "like HTML"), ("moved", "like HTML")])
def test_fault_19_final_answers_are_not_retried(server, toy, cache, path, words):
    with pytest.raises(DataError, match=words): fetch(toy({"url": f"{server.url}/{path}"}), progress=False)
    assert server.tries(f"/{path}") == 1
    assert left(cache) == []


# ------------------------------------------------------------------ offline


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_fault_20_offline(toy, cache, monkeypatch, no_network, way):
    one, offline = toy({"url": "https://example.org/flux.bin"}), way == "argument"
    if not offline: monkeypatch.setenv("SPECTRAL_OFFLINE", "1")
    with pytest.raises(DataError) as error: fetch(one, offline=offline)
    assert "https://example.org/flux.bin" in str(error.value) and str(cache / "toy") in str(error.value)
    assert "nothing was fetched, being offline: unset SPECTRAL_OFFLINE" in str(error.value)
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/flux.bin").write_bytes(DATA)  # by hand, as the message says
    assert fetch(one, offline=offline) == [cache / "toy/flux.bin"]


def test_fault_20_offline_wheel_is_named(cache, no_network):
    with pytest.raises(DataError, match=r"wheel ppxf==9\.5\.2") as error: fetch("ppxf_spectra", offline=True)
    assert str(cache / "ppxf_spectra") in str(error.value)


def test_fault_20_no_network_at_all(toy, monkeypatch):
    def refuse(*args): raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(DataError, match="by hand") as error: fetch(toy({"url": "http://127.0.0.1:9/flux.bin"}), progress=False)
    assert "offline" not in str(error.value)


def test_verified_hash_is_remembered(toy, cache, monkeypatch):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/flux.bin").write_bytes(DATA)
    fetch(toy({}))
    monkeypatch.setattr(manifest, "sha256_of", lambda file: pytest.fail("hashed twice"))
    fetch(toy({}))
    (cache / "hashes.json").write_text("{")  # a damaged memory is forgotten, not fatal
    monkeypatch.setattr(manifest, "sha256_of", lambda file: sha256(file.read_bytes()))
    assert fetch(toy({})) == [cache / "toy/flux.bin"]


# ------------------------------------------------------------------ order of sources


def test_sources_in_order(server, toy, cache, tmp_path, monkeypatch):
    one = toy({"path": "a"}, {"path": "b", "url": f"{server.url}/good"})
    (tmp_path / "mirror/toy").mkdir(parents=True)
    (tmp_path / "mirror/toy/a").write_bytes(DATA)
    monkeypatch.setenv("SPECTRAL_MIRROR", str(tmp_path / "mirror"))
    assert fetch(one, progress=False) == [tmp_path / "mirror/toy/a", cache / "toy/b"]
    (cache / "toy/a").write_bytes(DATA)
    assert fetch(one) == [cache / "toy/a", cache / "toy/b"]
    monkeypatch.setenv("SPECTRAL_MIRROR", str(tmp_path / "nowhere"))
    assert fetch(one) == [cache / "toy/a", cache / "toy/b"], "the mirror is not even looked at"
    with pytest.raises(DataError, match="not a folder"): fetch(toy({"path": "c"}))


def test_url_mirror_then_archive(server, toy, monkeypatch):
    monkeypatch.setenv("SPECTRAL_MIRROR", server.url)
    one = toy({"path": "absent", "url": f"{server.url}/good"}, {"path": "good.fits"})
    assert [file.read_bytes() for file in fetch(one, progress=False)] == [DATA, DATA]
    assert [path for path, _ in server.asked] == ["/toy/absent", "/toy/good.fits", "/good"]
    monkeypatch.setenv("SPECTRAL_MIRROR", "ftp://example.org")
    with pytest.raises(DataError, match="not an https"): fetch(toy({"path": "c"}))


def test_trust_on_first_use(server, toy, cache):
    one = toy({"url": f"{server.url}/good", "sha256": None, "bytes": None})
    with pytest.warns(UserWarning, match="no known SHA-256"): [file] = fetch(one, progress=False)
    assert (cache / "toy/SHA256SUMS").read_text() == f"{sha256(DATA)}  flux.bin\n"
    fetch(one)  # warns no more
    file.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(DataError, match="expected"): fetch(one, offline=True)


def test_two_processes_download_once(server, toy):
    one = toy({"url": f"{server.url}/good"})
    code = f"from spectral_core.manifest import fetch; fetch({str(one)!r}, progress=False)"
    both = [subprocess.Popen([sys.executable, "-W", "error", "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(server.asked) == 1


# ------------------------------------------------------------------ wheels


def write_wheel(file, members: dict[str, bytes], link: str | None = None):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items(): archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")


WHEEL = {"requirement": "toy==1.0", "sha256": "0" * 64, "bytes": 1, "folder": "toy/data/"}


@pytest.fixture
def pip(monkeypatch, tmp_path):
    "In place of `pip download`: hands over the wheel that the test wrote."
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"

    def give(requirement, sha256, folder): return wheel.rename(folder / wheel.name)

    monkeypatch.setattr(manifest, "download_wheel", give)
    return wheel


def test_wheel_members_are_unpacked_and_the_wheel_is_deleted(toy, cache, pip):
    write_wheel(pip, {"toy/data/sub/flux.bin": DATA, "toy/data/other.bin": b"not wanted", "toy/__init__.py": b"raise"})
    [file] = fetch(toy({"path": "sub/flux.bin"}, wheel=WHEEL), progress=False)
    assert file.read_bytes() == DATA and left(cache) == ["flux.bin"]


@pytest.mark.parametrize(("members", "link", "words"), [
    ({"toy/data/flux.bin": DATA[:-1] + b"!"}, None, "another SHA-256"),
    ({"toy/data/flux.bin": DATA * 2}, None, "expected"),
    ({"toy/flux.bin": DATA}, None, "no toy/data/flux.bin"), ({}, "toy/data/flux.bin", "is a link"),
    ({"toy/data/flux.bin/": b""}, None, "no toy/data/flux.bin"),
])
def test_fault_21_bad_archive_members(toy, cache, pip, members, link, words):
    write_wheel(pip, members, link)
    with pytest.raises(DataError, match=words): fetch(toy({}, wheel=WHEEL), progress=False)
    assert left(cache) == []


def test_fault_21_hostile_member_is_not_unpacked(toy, cache, pip, tmp_path):
    write_wheel(pip, {"../../escaped.bin": DATA, "/escaped.bin": DATA, "toy/data/flux.bin": DATA})
    fetch(toy({}, wheel=WHEEL), progress=False)
    assert not list(tmp_path.rglob("escaped.bin")) and left(cache) == ["flux.bin"]


def test_fault_18_damaged_wheel(toy, cache, pip):
    pip.write_bytes(b"this is no zip file")
    with pytest.raises(DataError, match="not a zip file"): fetch(toy({}, wheel=WHEEL), progress=False)
    assert left(cache) == []


def test_pip_is_called_with_hashes_and_without_constraints(tmp_path, monkeypatch):
    calls = []

    def run(command, **keys):
        calls.append((command, keys["env"], (tmp_path / "requirement.txt").read_text()))
        return subprocess.CompletedProcess(command, 1, "", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")

    monkeypatch.setenv("PIP_CONSTRAINT", "constraints.txt")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DataError, match="DO NOT MATCH"): transfer.download_wheel("toy==1.0", "0" * 64, tmp_path)
    [(command, environment, requirement)] = calls
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command) and "-c" not in command
    assert requirement == f"toy==1.0 --hash=sha256:{'0' * 64}\n" and "PIP_CONSTRAINT" not in environment


def test_missing_pip_is_said(tmp_path, monkeypatch, toy):
    monkeypatch.setattr(transfer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="ensurepip"): fetch(toy({}, wheel=WHEEL), progress=False)


# ------------------------------------------------------------------ hostile manifests, full and read-only disks

HOSTILE = ["../escaped", "/escaped", "sub/../../escaped", "~/escaped", "..\\escaped", "C:\\escaped", "a\x00b", ""]


@pytest.mark.parametrize("path", HOSTILE)
def test_fault_21_hostile_paths(toy, path, tmp_path, server):
    with pytest.raises(DataError, match="relative path"): fetch(toy({"path": path, "url": f"{server.url}/good"}))
    with pytest.raises(DataError, match="relative path"): fetch(toy({}, wheel=WHEEL | {"folder": path}))
    assert not server.asked


@pytest.mark.parametrize("name", HOSTILE)
def test_fault_21_hostile_names(name):
    with pytest.raises(DataError, match="relative path"): fetch(name)


def test_fault_21_link_in_the_cache(toy, cache, tmp_path, server):
    (tmp_path / "elsewhere").mkdir()
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/sub").symlink_to(tmp_path / "elsewhere")
    one = toy({"path": "sub/flux.bin", "url": f"{server.url}/good"})
    with pytest.raises(DataError, match="by a link"): fetch(one, progress=False)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_wheel_comes_without_a_bar_and_says_so(toy, cache, pip, capsys):
    write_wheel(pip, {"toy/data/flux.bin": DATA})
    fetch(toy({}, wheel=WHEEL), progress=True)
    assert "MB through pip, without a bar, please wait" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["web", "wheel"])
def test_fault_22_disk_full(toy, cache, server, pip, source):
    "A limit on the size of files stands in for the full disk: the kernel answers EFBIG in the middle of a write."
    write_wheel(pip, {"toy/data/flux.bin": DATA})
    one = toy({"url": f"{server.url}/good"}) if source == "web" else toy({}, wheel=WHEEL)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, old[1]))
    try:
        with pytest.raises(RunError, match="too large|full"): fetch(one, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert left(cache) == []


def test_fault_22_cache_cannot_be_made(toy, tmp_path, monkeypatch, server):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPECTRAL_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(RunError, match="SPECTRAL_CACHE"): fetch(toy({"url": f"{server.url}/good"}), progress=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_fault_22_read_only_cache(toy, cache, server):
    (cache / "toy").mkdir(parents=True)
    (cache / "toy/flux.bin").write_bytes(DATA)
    for folder in (cache / "toy", cache): folder.chmod(0o555)
    assert fetch(toy({})) == [cache / "toy/flux.bin"], "what is there can be used"
    with pytest.raises(RunError, match="Permission"):
        fetch(toy({"path": "b", "url": f"{server.url}/good"}), progress=False)
    for folder in (cache, cache / "toy"): folder.chmod(0o755)
