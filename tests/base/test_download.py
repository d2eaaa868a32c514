"""Getting a base from a real server on a real port, with everything that goes wrong on the way."""

import hashlib
import http.server
import json
import re
import threading

import pytest

from comigs_edge import files
from comigs_edge.base import catalogue
from comigs_edge.base import download as downloads
from comigs_edge.base.catalogue import Entry
from tests.tiny import write_llama


class Server(http.server.ThreadingHTTPServer):
    """Serves one content under every path; `cuts` ends connections after so many bytes, `failures` answers 503 first."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.cuts, self.failures, self.headers = content, '"one"', [], 0, {}
        self.seen = []

    def handle_error(self, *_):
        """A client that has enough hangs up; the test's standard error may be closed by then."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.seen.append((self.path, wanted))
        if "missing" in self.path:
            return self.answer(404)
        if server.failures:
            server.failures -= 1
            return self.answer(503)
        start = 0
        if wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(server.content):
            return self.answer(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        for key, value in {"Content-Length": len(body), "ETag": server.etag, **server.headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if server.cuts:
            body, self.close_connection = body[: server.cuts.pop(0)], True
        self.wfile.write(body)
        return None

    def answer(self, code):
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    monkeypatch.setenv("COMIGS_EDGE_BASES", str(tmp_path / "bases"))
    server = Server(write_llama(tmp_path / "served.gguf").read_bytes())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.server_port}/some/tiny.gguf"


def sha256(server):
    return hashlib.sha256(server.content).hexdigest()


def test_a_base_is_pulled_by_name_and_becomes_a_home(run, server, tmp_path, monkeypatch):
    entry = Entry("someone/tiny", "main", "tiny.gguf", "CC0", 1, sha256(server), catalogue.CATALOGUE["qwen3-0.6b"].shape, "F32")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny-base", entry)
    monkeypatch.setenv("COMIGS_EDGE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    result = json.loads(run("bases", "pull", "tiny-base", "--json").stdout)
    assert server.seen == [("/someone/tiny/resolve/main/tiny.gguf", None)]
    assert (tmp_path / "bases" / "tiny-base.gguf").read_bytes() == server.content
    assert result["sha256"] == sha256(server)
    assert "tiny-base" in json.loads(run("bases", "list", "--json").stdout)["here"]
    assert "CC0" in run("bases", "list").stdout
    run("init", "--base", "tiny-base")
    assert json.loads(run("status", "--json").stdout)["base"]["sha256"] == sha256(server)
    run("bases", "pull", "tiny-base")  # it is there and right: no second request
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_every_base_of_the_catalogue_is_one_file_for_ever(name):
    entry = catalogue.CATALOGUE[name]
    assert re.fullmatch("[0-9a-f]{40}", entry.revision)
    assert re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_a_download_goes_on_after_cut_connections_and_busy_servers(server, url, tmp_path):
    server.cuts, server.failures = [100_000, 1, 50_000], 2
    assert downloads.fetch(url, tmp_path / "b" / "x.gguf", sha256(server)) == sha256(server)
    assert (tmp_path / "b" / "x.gguf").read_bytes() == server.content
    assert [wanted for _, wanted in server.seen][-3:] == ["bytes=98304-", "bytes=98304-", "bytes=131072-"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["x.gguf"]


def test_a_part_survives_the_end_of_the_program_and_the_next_command_resumes(run, server, url, tmp_path):
    server.cuts = [70_000] + [0] * 10
    message = run("bases", "pull", url, code=1).stderr
    assert "could not be fetched" in message
    assert "resumes there" in message.replace("\n", " ")
    assert (tmp_path / "bases" / ".tiny.gguf.part").stat().st_size == 65_536
    server.cuts = []
    run("bases", "pull", url)
    assert server.seen[-1][1] == "bytes=65536-"
    assert (tmp_path / "bases" / "tiny.gguf").read_bytes() == server.content


def test_a_file_that_changed_on_the_server_starts_anew(run, server, url, tmp_path):
    server.cuts = [70_000] + [0] * 10
    run("bases", "pull", url, code=1)
    server.cuts, server.etag, server.content = [], '"two"', write_llama(tmp_path / "other.gguf", seed=1).read_bytes()
    run("bases", "pull", url)
    assert (tmp_path / "bases" / "tiny.gguf").read_bytes() == server.content


def test_wrong_content_is_deleted_and_never_gets_the_name(run, server, url, tmp_path):
    assert "it was deleted" in run("bases", "pull", url, "--sha256", "0" * 64, code=1).stderr.replace("\n", " ")
    server.headers = {"X-Linked-Etag": '"' + "1" * 64 + '"'}  # what Hugging Face names
    assert "not 1111111111111111..." in run("bases", "pull", url, code=1).stderr
    assert not list((tmp_path / "bases").glob("*.gguf"))
    assert not list((tmp_path / "bases").glob(".*part"))


def test_a_full_disk_is_noticed_before_anything_is_received(run, server, url, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SPARE", 10**18)
    assert "make room" in run("bases", "pull", url, code=1).stderr.replace("\n", " ")
    assert not list((tmp_path / "bases").glob("*part"))


def test_what_cannot_be_got_is_one_sentence(run, server, url):
    assert "answers 404" in run("bases", "pull", url.replace("tiny", "missing"), code=1).stderr
    assert "is not in the catalogue; names are" in run("bases", "pull", "gpt-5", code=1).stderr
    assert "is no address of a .gguf file" in run("bases", "pull", "ftp://x/y.gguf", code=1).stderr
    assert "is no address of a .gguf file" in run("bases", "pull", "https://[::1/y.gguf", code=1).stderr
    server.content = b"<html>sign in</html>"
    assert "is not a GGUF file" in run("bases", "pull", url, code=1).stderr


def test_a_complete_file_that_was_not_renamed_yet_is_got_again(server, url, tmp_path):
    """A kill between the last byte and the rename leaves a part that the server has nothing to add to (416)."""
    folder = tmp_path / "b"
    files.make_folder(folder)
    (folder / ".x.gguf.part").write_bytes(server.content)
    (folder / ".x.gguf.etag").write_text('"one"')
    assert downloads.fetch(url, folder / "x.gguf") == sha256(server)


def test_what_is_there_already_is_not_received_again(run, server, url, tmp_path):
    run("bases", "pull", url)
    server.cuts = [0] * 10  # nothing could be received
    run("bases", "pull", url)
    server.headers = {"X-Linked-Etag": '"' + sha256(server) + '"'}
    run("bases", "pull", url)
    assert (tmp_path / "bases" / "tiny.gguf").read_bytes() == server.content


def test_a_file_of_the_right_size_with_another_sha256_is_not_kept(run, server, url, tmp_path):
    run("bases", "pull", url)
    (tmp_path / "bases" / "tiny.gguf").write_bytes(server.content[:-1] + b"?")
    run("bases", "pull", url, "--sha256", sha256(server))
    assert (tmp_path / "bases" / "tiny.gguf").read_bytes() == server.content


def test_a_place_that_cannot_be_written_is_one_sentence(run, url, monkeypatch):
    monkeypatch.setenv("COMIGS_EDGE_BASES", "/proc/here")
    assert "COMIGS_EDGE_BASES" in run("bases", "pull", url, code=1).stderr


def test_a_page_in_place_of_a_model_never_replaces_one(run, server, url, tmp_path):
    run("bases", "pull", url)
    good, server.content = server.content, b"<html>sign in</html>"
    assert "is not a GGUF file" in run("bases", "pull", url, code=1).stderr
    assert (tmp_path / "bases" / "tiny.gguf").read_bytes() == good
