"""What the tags of a model say of which weights were trained."""

import pytest

from vit_search.config import search_file
from vit_search.config.tuning import tuning_tags

HEAD = "name: t\ndata: {name: digits}\ntrials: 2\nepochs: 3\n"
LORA = {"tune": "lora", "lora_rank": "4", "lora_alpha": "8", "lora_layers": "mlp"}


@pytest.mark.parametrize(
    ("training", "tags"),
    [
        ("", {"tune": "full"}),
        ("layer_decay: 0.75, lora_rank: 4", {"tune": "full", "layer_decay": "0.75"}),
        ("tune: head, layer_decay: 0.75, tuned_blocks: 2", {"tune": "head"}),
        ("tune: head, head_lr_factor: 10", {"tune": "head", "head_lr_factor": "10"}),
        ("tune: last_blocks, tuned_blocks: 2", {"tune": "last_blocks", "tuned_blocks": "2"}),
        ("tune: lora, lora_rank: 4, lora_layers: mlp", LORA),
    ],
)
def test_tags_name_the_way_and_the_keys_that_belong_to_it(training, tags):
    spec = search_file.parse(f"{HEAD}model: {{pretrained: a.safetensors}}\ntraining: {{{training}}}\n")
    assert tuning_tags(spec.space.complete({})) == tags


@pytest.mark.parametrize(("training", "tags"), [("", {}), ("layer_decay: 0.5", {"tune": "full", "layer_decay": "0.5"})])
def test_a_model_that_is_trained_as_usual_from_random_weights_has_no_such_tags(training, tags):
    assert tuning_tags(search_file.parse(f"{HEAD}training: {{{training}}}\n").space.complete({})) == tags
