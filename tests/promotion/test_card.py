"""The model card: what others have written into it is text, not HTML and not a link."""

import dataclasses

import numpy as np
from markdown_it import MarkdownIt

from vit_search.config import search_file
from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.promotion import card
from vit_search.promotion.evidence.answers import SplitAnswers
from vit_search.promotion.evidence.costs import Costs
from vit_search.promotion.finalists import Finalist, Retrained
from vit_search.promotion.gates import Gate
from vit_search.vit.checkpoint import ServedModel

EVIL = "<script>alert(1)</script>[a](javascript:alert(1)) ![b](javascript:c) <javascript:d> `|\n# x \u202e\x1b[2J\x07"


def written(tmp_path, tags):
    """The card of a version with these tags; all else that it quotes is EVIL."""
    spec = search_file.parse(
        "name: tiny\ndata: {name: digits}\ntrials: 1\nepochs: 1\nmodel: {patch_size: 4, dim: 16, depth: 1, heads: 2}\n"
    )
    config = TrialConfig(
        data=dataclasses.replace(DataConfig(name="digits"), name=EVIL),
        model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=2, patch_size=4, dim=16, heads=2, depth=1),
        training=TrainingConfig(epochs=1),
        seed=0,
    )
    served = ServedModel(None, config, None, (EVIL, "dog"), EVIL, (EVIL,))
    finalist = Finalist(0, {}, 0.9, (1,), (0.9,), (tmp_path,), (0,), (0.9,))
    retrained = Retrained(tmp_path, EVIL, EVIL, EVIL, spec, (finalist,), {1: EVIL})
    seen = SplitAnswers(
        classes=(EVIL, "dog"),
        labels=np.array([0, 1]),
        predictions=np.array([0, 0]),
        label_nll=np.zeros(2),
        confidence=np.array([0.9, 0.6]),
        loss=0.1,
        brier=0.0,
        corrupted={},
    )
    tags = {"verdict": "forced", "forced": EVIL, "seed": EVIL, "optimism": "0.1", "code_version": EVIL, "test_reading": "1", **tags}
    judged = [Gate("G1", "integrity", False, EVIL)]
    costs = Costs(params=1, file_bytes=1, flops=1, latency={}, peak_memory_bytes={})
    return card.model_card(EVIL, retrained, finalist, served, tags, judged, seen, costs)


def test_nothing_in_a_card_is_html_or_a_link(tmp_path):
    tags = dict.fromkeys(("pretrained_source", "pretrained_revision", "pretrained_sha256", "pretrained_licence", "tune", "lora_rank"), EVIL)
    text = written(tmp_path, tags)
    tokens = [*MarkdownIt("commonmark").enable("table").parse(text)]
    tokens += [child for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens} & {"html_block", "html_inline", "link_open", "image"} == set()
    assert [token for token in tokens if token.type == "heading_open" and token.tag == "h1"] == [tokens[0]]
    assert not any(mark in text for mark in "\x1b\x07\u202e")


def test_a_card_says_where_the_weights_come_from_and_which_were_trained(tmp_path):
    weights = {"pretrained_source": "timm:vit.a", "pretrained_revision": "abc", "pretrained_sha256": "0" * 64, "pretrained_licence": "mit"}
    text = written(tmp_path, {**weights, "tune": "lora", "lora_rank": "4", "lora_alpha": "8", "lora_layers": "all", "layer_decay": "0.9"})
    assert f"| starts from | timm:vit.a, revision abc, sha256 {'0' * 16}…, licence mit |\n" in text
    trained = "the head, and LoRA's corrections of the blocks; tune lora; lora_rank 4; lora_alpha 8; lora_layers all; layer_decay 0.9"
    assert f"| trained weights | {trained} |\n" in text


def test_the_card_of_a_random_start_says_nothing_of_weights(tmp_path):
    text = written(tmp_path, {})
    assert "starts from" not in text and "trained weights" not in text
