"""Paths in a file that runs on other machines: those of this machine are refused."""

import pytest

from vit_search.cluster.paths import check_paths
from vit_search.config import search_file
from vit_search.errors import SpecError

FILE = "name: tiny\ndata: {name: digits}\ntrials: 2\nepochs: 2\nmodel: {patch_size: 4, dim: 32, depth: 1, heads: 2}\n"


def test_a_path_of_the_laptop_is_refused():
    text = FILE.replace("{name: digits}", "{name: cifar10, path: %s}")
    check_paths(search_file.parse(text % "/data"), "f.yaml")
    with pytest.raises(SpecError, match=r"f\.yaml: data\.path: 'data' is a path of this machine"):
        check_paths(search_file.parse(text % "data"), "f.yaml")


@pytest.mark.parametrize(("source", "is_here"), [("/w/a", 0), ("w/a", 1), ("~/a", 1), ("timm:a.b", 0), ("file:///w/a", 0)])
def test_weights_of_the_laptop_are_refused(source, is_here):
    spec = search_file.parse(FILE.replace("{patch_size:", f"{{pretrained: '{source}', patch_size:"))
    assert spec.pretrained == [source]
    if is_here:
        with pytest.raises(SpecError, match=rf"f\.yaml: model\.pretrained: '{source}' is a path of this machine"):
            check_paths(spec, "f.yaml")
    else:
        check_paths(spec, "f.yaml")
