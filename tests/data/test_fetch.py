"""Files behind a URL: fetched once, in parts that stay, checked, and read as files of this machine. The servers are real processes."""

import contextlib
import datetime
import functools
import http.server
import ipaddress
import multiprocessing
import os
import shutil
import ssl
import subprocess
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from helpers.remote_files import KEY, SECRET, gs_server, http_server, photos, s3_client, s3_server, upload
from helpers.servers import free_port

from vit_search.config.data_config import DataConfig
from vit_search.config.data_urls import check_url, expanded
from vit_search.data import fetch, remote
from vit_search.data.cache import prepare, read_split
from vit_search.data.fetch import fetched
from vit_search.data.remote import list_files
from vit_search.errors import DataError, SpecError


def folder_config(path, **fields):
    return DataConfig(name="image_folder", path=str(path), image_size=8, **fields)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSES_S", (0.01, 0.01))


@pytest.fixture(scope="module")
def moto(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("moto") / "log") as environment:
        yield environment


@pytest.fixture
def s3(moto, monkeypatch):
    """Credentials in the environment; yields a client that can write."""
    for name, value in moto.items():
        monkeypatch.setenv(name, value)
    return s3_client(moto)


@pytest.fixture
def local(tmp_path):
    return photos(tmp_path / "photos")


def objects(cache):
    return {path: path.stat().st_mtime_ns for path in (cache / "remote").rglob("objects/*")}


def test_a_folder_in_a_bucket_is_the_same_data_as_the_folder_itself(s3, local, tmp_path):
    s3.create_bucket(Bucket="pets")
    upload(s3, "pets", local, "v1/photos/")
    data = prepare(folder_config("s3://pets/v1/photos"), cache=tmp_path / "cache")
    assert data.data_hash == prepare(folder_config(local), cache=tmp_path / "other").data_hash
    assert data.classes == ("cat", "dog") and sum(data.counts.values()) == 12


def test_only_what_is_new_behind_the_url_is_fetched_again(s3, local, tmp_path):
    s3.create_bucket(Bucket="growing")
    upload(s3, "growing", local)
    cache, config = tmp_path / "cache", folder_config("s3://growing")
    first = prepare(config, cache=cache)
    before = objects(cache)
    assert prepare(config, cache=cache).data_hash == first.data_hash and objects(cache) == before
    s3.put_object(Bucket="growing", Key="cat/new.png", Body=(local / "cat" / "0.png").read_bytes())
    s3.delete_object(Bucket="growing", Key="dog/5.png")
    second = prepare(config, cache=cache)
    assert second.data_hash != first.data_hash
    after = objects(cache)
    assert len(after) == len(before) + 1 and {path: after[path] for path in before} == before
    with fetched(config, cache) as copy:
        names = {path.name for path in (fetch.Path(copy.path) / "cat").iterdir()}
    assert names == {f"{i}.png" for i in range(6)} | {"new.png"}


def test_a_bucket_that_does_not_exist_is_one_line(s3, tmp_path):
    with pytest.raises(DataError, match=r"^s3://no-such-bucket/x: not there \(.*bucket.*\); check the name\.$"):
        prepare(folder_config("s3://no-such-bucket/x"), cache=tmp_path)


def test_a_folder_that_is_empty_is_one_line(s3, tmp_path):
    s3.create_bucket(Bucket="empty")
    with pytest.raises(DataError, match=r"^s3://empty/photos: there are no files; check the name"):
        prepare(folder_config("s3://empty/photos"), cache=tmp_path)


def test_no_credentials_is_one_line(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"^s3://pets2: no credentials in the environment; set AWS_ACCESS_KEY_ID and "):
        prepare(folder_config("s3://pets2"), cache=tmp_path)


def test_a_public_bucket_needs_no_credentials(s3, local, monkeypatch, tmp_path):
    s3.create_bucket(Bucket="public")
    upload(s3, "public", local, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("FSSPEC_S3_ANON", "true")
    from fsspec.config import set_conf_env  # fsspec reads the environment when it is imported

    with monkeypatch.context() as changed:
        import fsspec.config

        changed.setattr(fsspec.config, "conf", {})
        set_conf_env(fsspec.config.conf)
        assert sum(prepare(folder_config("s3://public"), cache=tmp_path / "cache").counts.values()) == 12


def test_an_endpoint_that_nobody_listens_at_is_one_line(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DataError, match=r"^s3://pets: the server cannot be reached \(.*\); check the address and the network"):
        prepare(folder_config("s3://pets"), cache=tmp_path)


def test_the_secret_is_in_no_file(s3, local, tmp_path):
    s3.create_bucket(Bucket="secret")
    upload(s3, "secret", local)
    prepare(folder_config("s3://secret"), cache=tmp_path / "cache")
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes() and KEY.encode() not in path.read_bytes()


def test_a_message_of_a_library_says_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert remote.reason(OSError(f"bad request with {SECRET}")) == (
        "cannot be read (bad request with $AWS_SECRET_ACCESS_KEY); check the address and the network."
    )


class Denying(http.server.BaseHTTPRequestHandler):
    """S3 as it answers an account that may not list."""

    def do_GET(self):
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":  # whose answer has none
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def serving(handler, certificate=None):
    """A server on 127.0.0.1; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'' if certificate is None else 's'}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("path", ["pets", "pets/photos", "pets/photos/set.tar", "pets/a-{0..1}.tar"])
def test_access_denied_is_one_line(s3, monkeypatch, tmp_path, path):
    with serving(Denying) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(
            DataError, match=r"^s3://pets[^ ]*: access denied \((Access Denied|Forbidden)\); check the credentials"
        ) as refused:
            prepare(folder_config(f"s3://{path}"), cache=tmp_path)
    assert "\n" not in str(refused.value) and str(refused.value).count("s3://") == 1


class ListingOnly(Denying):
    """S3 as it answers an account that may list a bucket and not read what is in it."""

    def do_GET(self):
        if "list-type=2" not in self.path:
            super().do_GET()
            return
        content = (
            "<Contents><Key>cat/0.png</Key><Size>9</Size><ETag>x</ETag><LastModified>2026-11-29T00:00:00.000Z</LastModified></Contents>"
        )
        body = f"<?xml version='1.0'?><ListBucketResult><Name>pets</Name><KeyCount>1</KeyCount>{content}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_file_that_may_be_listed_and_not_read_is_one_line(s3, monkeypatch, tmp_path):
    with serving(ListingOnly) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(DataError) as refused:
            prepare(folder_config("s3://pets"), cache=tmp_path)
    message = str(refused.value)
    assert message.startswith("s3://pets/cat/0.png: access denied (Access Denied); check the credentials in the environment, and that they")
    assert "\n" not in message and message.count("s3://") == 1


@pytest.mark.parametrize("protocol", ["http", "https"])
@pytest.mark.parametrize("name", ["photos/", "photos.tar"])
def test_a_server_that_is_not_there_is_one_line_that_names_the_url_once(tmp_path, protocol, name):
    url = f"{protocol}://127.0.0.1:{free_port()}/{name}"
    with pytest.raises(DataError) as refused:
        list_files(url)
    assert str(refused.value) == f"{url}: the server cannot be reached (Connection refused); check the address and the network."


def test_a_host_that_is_not_known_is_one_line():
    with pytest.raises(
        DataError, match=r"^https://pets\.invalid/x: the server cannot be reached \([^/]*\); check the address and the network\.$"
    ):
        list_files("https://pets.invalid/x")  # .invalid: RFC 2606


def test_a_page_that_is_not_there_is_one_line_that_names_the_url_once(tmp_path):
    with http_server(tmp_path) as server, pytest.raises(DataError) as refused:
        list_files(f"{server.url}/none/")
    assert str(refused.value) == f"{server.url}/none/: not there; check the name."


def test_https_to_a_server_without_it_is_one_line(tmp_path):
    with http_server(tmp_path) as server, pytest.raises(DataError) as refused:
        list_files(server.url.replace("http:", "https:") + "/x/")
    assert str(refused.value).endswith("/x/: the server speaks no https there (wrong version number); try http://.")


def self_signed(folder):
    """A certificate for 127.0.0.1 that nobody else has signed, and its key: one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(pem))
    return folder / "both.pem"


def test_a_certificate_that_nobody_has_signed_is_one_line_and_can_be_trusted(local, tmp_path):
    file = self_signed(tmp_path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(local))
    with serving(handler, file) as address:
        code = "import sys; from vit_search.data.remote import list_files; print(len(list_files(sys.argv[1]).files))"
        command = [sys.executable, "-c", code, f"{address}/"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        trusted = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"SSL_CERT_FILE": str(file)})
    said = "the certificate of the server is not valid (self-signed certificate); if you trust it, name its file in SSL_CERT_FILE."
    assert refused.stderr.strip().splitlines()[-1].endswith(f"{address}/: {said}")
    assert trusted.stdout == "12\n"


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(remote, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^s3:// needs the package s3fs, .*; uv pip install 's3fs', or pip install 'vit_search\[s3\]'\.$"):
        list_files("s3://pets")


def test_a_folder_over_http_is_the_same_data_as_the_folder_itself(local, tmp_path):
    (local / "cat" / "0.png").rename(local / "cat" / "a b%20c.png")  # a name that is encoded on its way
    with http_server(tmp_path) as server:
        for url in (f"{server.url}/photos/", f"{server.url}/photos"):
            data = prepare(folder_config(url), cache=tmp_path / "cache")
            assert data.data_hash == prepare(folder_config(local), cache=tmp_path / "other").data_hash


def test_a_file_that_names_others_stands_for_its_folder(local, tmp_path):
    (local / "set.csv").write_text("image,label\ncat/0.png,cat\n")
    with http_server(tmp_path) as server:
        copy = fetch.fetch(f"{server.url}/photos/set.csv", tmp_path / "cache", (".csv",))
        assert copy.at == copy.folder / "set.csv" and (copy.at.parent / "cat" / "0.png").is_file()
        with pytest.raises(DataError, match=r"none\.csv: not there; check the name"):
            fetch.fetch(f"{server.url}/photos/none.csv", tmp_path / "cache", (".csv",))


def test_file_urls_are_opened_where_they_are(local, tmp_path):
    data = prepare(folder_config(f"file://{local}"), cache=tmp_path / "cache")
    assert data.data_hash == prepare(folder_config(local), cache=tmp_path / "other").data_hash
    assert not (tmp_path / "cache" / "remote").exists()


def one_file(tmp_path, size=3_000_000):
    (tmp_path / "served").mkdir()
    content = os.urandom(size)
    (tmp_path / "served" / "set.bin").write_bytes(content)
    return content


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_is_taken_up_where_it_broke(tmp_path, ranges):
    content = one_file(tmp_path)
    with http_server(tmp_path / "served") as server:
        server.ranges, server.drops["/set.bin"] = ranges, 2
        copy = fetch.fetch(f"{server.url}/set.bin", tmp_path / "cache")
        assert copy.at.read_bytes() == content and copy.at.name == "set.bin"
        assert [asked for _, asked in server.gets][1:] == ["bytes=1500000-", "bytes=2250000-" if ranges else "bytes=1500000-"]


def test_a_copy_that_is_complete_but_for_its_name_is_fetched_again_if_the_server_says_no_size(tmp_path):
    content = one_file(tmp_path)
    with http_server(tmp_path / "served") as server:
        server.sizes = False
        first = fetch.fetch(f"{server.url}/set.bin", tmp_path / "cache")
        (named,) = [path for path in objects(tmp_path / "cache") if path.read_bytes() == content]
        named.rename(f"{named}.part")  # as if its process was killed just before the renaming
        shutil.rmtree(first.at.parent)
        server.gets = []
        assert fetch.fetch(f"{server.url}/set.bin", tmp_path / "cache").at.read_bytes() == content
        assert ("/set.bin", f"bytes={len(content)}-") in server.gets


def test_a_network_that_stays_broken_is_one_line_and_the_next_start_goes_on(tmp_path):
    content = one_file(tmp_path)
    with http_server(tmp_path / "served") as server:
        url = f"{server.url}/set.bin"
        server.drops["/set.bin"], server.ranges = 99, False
        with pytest.raises(
            DataError, match=rf"^{url}: the connection broke; check the network; what has arrived stays in the cache, and the next start"
        ):
            fetch.fetch(url, tmp_path / "cache")
        server.drops.clear()
        server.ranges, server.gets = True, []
        assert fetch.fetch(url, tmp_path / "cache").at.read_bytes() == content
        assert server.gets == [("/set.bin", "bytes=1500000-")]


def test_what_is_complete_is_not_fetched_again_after_a_failure(local, tmp_path):
    with http_server(tmp_path) as server:
        server.drops["/photos/dog/5.png"] = 99
        with pytest.raises(DataError, match=r"dog/5\.png: the connection broke; check the network; what has arrived"):
            prepare(folder_config(f"{server.url}/photos"), cache=tmp_path / "cache")
        done = [path for path in objects(tmp_path / "cache") if path.suffix != ".part"]
        assert done  # those that were not begun when one had failed are given up
        server.drops.clear()
        server.gets = []
        prepare(folder_config(f"{server.url}/photos"), cache=tmp_path / "cache")
        fetched = [path for path, _ in server.gets if path.endswith(".png")]
        assert "/photos/dog/5.png" in fetched
        assert len(fetched) == len(set(fetched)) <= 12 - len(done)  # of one that was stopped, all may have arrived


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, r"not there \(HTTP 404"), (403, r"access denied \(HTTP 403"), (500, r"the server refuses it \(HTTP 500.*try again later")],
)
def test_what_a_server_refuses_is_one_line(local, tmp_path, status, message):
    with http_server(tmp_path) as server:
        server.status["/photos/cat/1.png"] = status
        with pytest.raises(DataError, match=f"cat/1.png: {message}") as caught:
            prepare(folder_config(f"{server.url}/photos"), cache=tmp_path / "cache")
        assert "\n" not in str(caught.value)


def test_what_is_wrong_with_an_image_is_told_of_its_url(s3, local, tmp_path):
    (local / "cat" / "1.png").write_bytes(b"no image")
    s3.create_bucket(Bucket="damaged")
    upload(s3, "damaged", local)
    with pytest.raises(DataError, match=r"^s3://damaged/cat/1\.png: no image that can be decoded"):
        prepare(folder_config("s3://damaged"), cache=tmp_path / "cache")


def _prepare(url, cache):
    prepare(folder_config(url), cache=cache)


def test_two_processes_that_want_the_same_files_fetch_them_once(local, tmp_path):
    with http_server(tmp_path) as server:
        context = multiprocessing.get_context("spawn")
        both = [context.Process(target=_prepare, args=(f"{server.url}/photos", tmp_path / "cache")) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join()
            assert process.exitcode == 0
        assert len([path for path, _ in server.gets if path.endswith(".png")]) == 12


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"s3://{KEY}:{SECRET}@pets/x", "the s3 URL has a user name or a password"),
        (f"https://me:{SECRET}@example.org/x", "the https URL has a user name or a password"),
        ("https://me:1/2@example.org/x", "the https URL has a user name or a password"),
        ("https://me:pw@example.org/x", "the https URL has a user name or a password"),
        (f"https://example.org/x?X-Amz-Signature={SECRET}", "which looks like a password"),
        ("ftp://example.org/x", "unknown protocol ftp://; choose from s3, gs, https, http, file"),
        ("s4://pets", "unknown protocol s4://"),
        ("s3:///pets", "the URL names no bucket; write s3://NAME/folder"),
        ("file://elsewhere/pets", "names another machine; write three slashes"),
    ],
)
def test_a_url_that_cannot_be_read_or_holds_a_password_is_refused_without_it(url, message):
    with pytest.raises(SpecError, match=f"^data.path: .*{message}") as caught:
        check_url(url)
    assert SECRET not in str(caught.value) and "pw" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    ["s3://pets/photos@2x/a:b", "https://example.org:8080/x", "http://[::1]:80/x", "https://example.org/@me/x?download=1", "file:///a@b:c"],
)
def test_signs_that_look_like_a_password_elsewhere_are_none(url):
    check_url(url)


def test_braces_stand_for_numbers_and_words():
    assert expanded("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expanded("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expanded("plain.tar") == ["plain.tar"]


def test_a_pattern_names_files_of_a_bucket(s3, tmp_path):
    s3.create_bucket(Bucket="shards")
    for i in range(3):
        s3.put_object(Bucket="shards", Key=f"v1/a-{i:03}.tar", Body=bytes([i]) * 10)
    copy = fetch.fetch("s3://shards/v1/a-{000..001}.tar", tmp_path)
    assert sorted(path.name for path in copy.folder.iterdir()) == ["a-000.tar", "a-001.tar"] and copy.path == "a-{000..001}.tar"
    with pytest.raises(DataError, match=r"a-003\.tar: not there"):
        fetch.fetch("s3://shards/v1/a-{002..003}.tar", tmp_path)


def test_a_large_object_is_fetched_in_blocks(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "BLOCK", 1000)
    content = os.urandom(2500)
    s3.create_bucket(Bucket="large")
    s3.put_object(Bucket="large", Key="set.bin", Body=content)
    assert fetch.fetch("s3://large/set.bin", tmp_path).at.read_bytes() == content


def test_images_of_a_bucket_are_streamed_from_the_copy(s3, local, tmp_path):
    s3.create_bucket(Bucket="streamed")
    upload(s3, "streamed", local)
    data = prepare(folder_config("s3://streamed"), cache=tmp_path / "cache", stream_above=0)
    names, labels = read_split(data, "train")
    assert data.reader(str(names[0]), (8, 8)).shape == (3, 8, 8) and len(labels) == data.counts["train"]


def test_a_folder_in_a_bucket_of_google_is_the_same_data(local, tmp_path, monkeypatch):
    with gs_server(tmp_path, "pets") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        data = prepare(folder_config("gs://pets/photos"), cache=tmp_path / "cache")
        assert data.data_hash == prepare(folder_config(local), cache=tmp_path / "other").data_hash
        with pytest.raises(DataError, match=r"^gs://none/photos: not there \(.*none.*\); check the name"):
            prepare(folder_config("gs://none/photos"), cache=tmp_path / "cache")
