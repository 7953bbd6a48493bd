"""A search on images in a bucket, from start to end, with the server and the command as processes of their own."""

import json
import sqlite3

import pytest
from helpers.commands import vit_search_process
from helpers.remote_files import KEY, SECRET, photos, s3_client, s3_server, upload

FILE = """
name: pets
data: {name: image_folder, path: "s3://pets/photos", image_size: 8}
trials: 2
epochs: 1
stopping: {kind: none}
model: {patch_size: 4, dim: 16, depth: 1, heads: 2}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 16}
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    home = tmp_path_factory.mktemp("bucket")
    folder = home / "project"
    folder.mkdir()
    (folder / "pets.yaml").write_text(FILE)
    with s3_server(home / "moto.log") as environment:
        client = s3_client(environment)
        client.create_bucket(Bucket="pets")
        upload(client, "pets", photos(home / "photos", each=40), "photos/")
        around = environment | {"VIT_SEARCH_CACHE": str(folder / "cache")}
        done = vit_search_process(folder, "run", "pets.yaml", **around)
        shown = [vit_search_process(folder, *words, **around) for words in (("resume", "pets-1"), ("report", "pets-1"))]
    return folder, [done, *shown]


def test_a_search_on_a_bucket_runs_to_its_end(searched):
    _, commands = searched
    assert "2 trials" in commands[0].stdout and "2 classes: cat, dog; 80 images" in commands[0].stderr


def test_neither_key_nor_secret_is_in_any_file_or_output(searched):
    folder, commands = searched
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "ledger.jsonl" for path in files) and any(path.name == "mlruns.db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert SECRET.encode() not in content and KEY.encode() not in content, path
    for done in commands:
        assert SECRET not in done.stdout + done.stderr and KEY not in done.stdout + done.stderr


def test_mlflow_knows_the_bucket_as_the_source_of_the_data(searched):
    folder, _ = searched
    with sqlite3.connect(folder / "mlruns.db") as database:
        found = set(database.execute("select dataset_source_type, dataset_source from datasets"))
    assert {(kind, json.loads(source)["uri"]) for kind, source in found} == {("s3", "s3://pets/photos")}
