"""A path that is missing beside one of nearly the same name is told that name."""

import pytest
from typer.testing import CliRunner

from vit_search.cli.app import app
from vit_search.config.data_config import DataConfig
from vit_search.data.sources import open_source
from vit_search.errors import DataError

PATHS = [("image_folder", "photo", "photos"), ("table", "scan.csv", "scans.csv"), ("webdataset", "shard", "shards")]


@pytest.mark.parametrize(("name", "wrong", "right"), PATHS)
def test_a_misspelt_path_is_told_the_nearest_name_in_its_folder(tmp_path, monkeypatch, name, wrong, right):
    monkeypatch.chdir(tmp_path)
    config = DataConfig(name=name, path=wrong, image_size=8)
    with pytest.raises(DataError) as refused:
        open_source(config)
    assert "did you mean" not in str(refused.value)
    (tmp_path / right).touch() if "." in right else (tmp_path / right).mkdir()
    with pytest.raises(DataError) as refused:
        open_source(config)
    assert str(refused.value).endswith(f"; did you mean {right}?")
    file = f"name: x\ndata: {{name: {name}, path: {wrong}, image_size: 8}}\ntrials: 2\nepochs: 4\nmodel: {{patch_size: 4}}\n"
    (tmp_path / "x.yaml").write_text(file)
    done = CliRunner().invoke(app, ["lint", "x.yaml"])
    assert f"note: {wrong} is not on this machine, so its images are not looked at; did you mean {right}?" in done.output
