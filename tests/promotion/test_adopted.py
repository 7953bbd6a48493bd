"""What the result of `vit-search train` must be to become a search, so that it can be promoted."""

import shutil

import pytest
from helpers import models

from vit_search.config import search_file
from vit_search.data import backbones
from vit_search.data.cache import prepare
from vit_search.errors import SearchError
from vit_search.promotion import adopted
from vit_search.vit import train_once


def test_an_unfinished_training_is_told_how_far_it_is_also_without_the_weights_that_its_checkpoint_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.untrained(tmp_path / "backbone", depth=2)
    spec = search_file.parse(
        "name: fine\ndata: {name: digits, train_limit: 64}\ntrials: 1\nepochs: 2\nmodel: {pretrained: backbone}\n"
        "training: {tune: head, lr: 0.01, batch_size: 16}\n"
    )
    spec = backbones.pinned(spec, backbones.find_all(spec))
    data = prepare(spec.data_config)
    config = spec.trial_config({}, in_channels=1, num_classes=10, trial=0)
    training = train_once.train(spec, config, data, tmp_path / "trained")
    next(training)
    training.close()
    shutil.rmtree(tmp_path / "backbone")
    with pytest.raises(SearchError, match=r"^\S+trained: trained for 1 of 2 epochs; go on with `vit-search train`\.$"):
        adopted.adopt(tmp_path / "trained", tmp_path / "searches")
    assert not (tmp_path / "searches").exists()
