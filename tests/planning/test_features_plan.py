"""What plan and lint say of searches whose frozen parts run once."""

import pytest

from vit_search.config import search_file
from vit_search.config.cost import frozen_flops
from vit_search.planning import plan as planning
from vit_search.planning import search_lint
from vit_search.planning.image_counts import Images
from vit_search.planning.speed import Speed, evaluation_seconds, features_seconds, stated_speed, train_seconds

HEAD = "name: t\ndata: {name: digits}\ntrials: 5\nepochs: 4\nstopping: {kind: none}\nconcurrency: 1\n"
MODEL = "model: {pretrained: PRETRAINED, depth: 2, dim: 32, heads: 2, patch_size: 4}\n"


def spec(training, pretrained="w.safetensors"):
    return search_file.parse(HEAD + MODEL.replace("PRETRAINED", pretrained) + f"training: {{{training}}}\n")


def config_of(made):
    return made.trial_config({}, in_channels=1, num_classes=10, trial=0)


def hints(made):
    return [(f.where, f.text) for f in search_lint.lint(made).findings if f.where in ("training.tune", "training.feature_views")]


def test_a_plan_has_the_frozen_parts_once_and_the_head_in_each_epoch():
    made, again = spec("tune: head"), spec("tune: head, feature_views: 0")
    plan, whole = (planning.plan(one, stated_speed(1e9)) for one in (made, again))
    head = 2 * 32 * 10
    frozen = frozen_flops(config_of(made).model, config_of(made).training.tuning)
    assert plan.flops == pytest.approx(20 * (1258 * 2 * head + 179 * head) + (1258 + 179) * frozen)
    assert whole.flops == pytest.approx(20 * (1258 * (2 * head + frozen) + 179 * (head + frozen)))
    in_20_epochs = 20 * (1258 * 2 * head + 179 * 2 * head / 3) / 1e9
    once = features_seconds(stated_speed(1e9), config_of(made), Images(1258, 179))
    assert plan.trial_seconds == pytest.approx(in_20_epochs + once)
    assert plan.wall_seconds == pytest.approx(plan.trial_seconds)  # one after another
    assert plan.trial_seconds < whole.trial_seconds / 10


@pytest.mark.parametrize(
    ("training", "passes"),
    [("tune: head", 1), ("tune: head, flip: true, feature_views: 3", 3), ("tune: last_blocks", 1), ("tune: full", 0)],
)
def test_each_version_of_the_images_passes_once(training, passes):
    config, speed = config_of(spec(training)), Speed(gflop_s=1.0)
    expected = evaluation_seconds(speed, config_of(spec("tune: full")), passes * 1258 + 179) if passes else 0
    assert features_seconds(speed, config, Images(1258, 179)) == pytest.approx(expected)


def test_each_backbone_and_each_depth_passes_once():
    one = planning.plan(spec("tune: head")).flops
    two = planning.plan(spec("tune: head", pretrained="{choice: [a.safetensors, b.safetensors]}")).flops
    frozen = frozen_flops(config_of(spec("tune: head")).model, config_of(spec("tune: head")).training.tuning)
    both = 1 - 2 * 0.5**5  # chance that five trials have both backbones
    assert (two - one) / (1437 * frozen) == pytest.approx(both, abs=0.08)


def test_a_step_on_features_has_the_work_of_what_is_trained():
    head, block = config_of(spec("tune: head, batch_size: 50")), config_of(spec("tune: last_blocks, batch_size: 50"))
    assert train_seconds(Speed(gflop_s=1.0), head, 1000) == pytest.approx(1000 * 4 * 32 * 10 / 1e9)
    assert train_seconds(Speed(gflop_s=0, block_s=1), head, 1000) == 0
    assert train_seconds(Speed(gflop_s=0, block_s=1), block, 1000) == 20
    assert evaluation_seconds(Speed(gflop_s=0, block_s=1, evaluation=1), block, 128) == 1


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ("tune: head", None),
        ("tune: full, flip: true", None),
        ("tune: head, flip: true, feature_views: 0", None),
        ("tune: head, flip: true, feature_views: 4", None),
        (
            "tune: head, flip: true",
            "with head, frozen parts run in each epoch, because the images change (flip); "
            "write feature_views: 4 to keep the output for 4 versions of each image.",
        ),
        (
            "tune: last_blocks, mixup: 0.2, feature_views: 4",
            "with last_blocks, frozen parts run in each epoch, because the images change (mixup); "
            "search what mixes or erases only when: \"tune == 'full'\".",
        ),
    ],
)
def test_lint_says_why_frozen_parts_run_again(training, text):
    assert hints(spec(training)) == ([("training.tune", text)] if text else [])


def test_lint_says_in_how_many_proposals_they_do():
    made = spec("tune: {choice: [head, full]}, shift: {choice: [0, 2]}")
    ((where, text),) = hints(made)
    assert where == "training.tune"
    assert text.startswith("in 5") or text.startswith("in 4")
    assert "of the proposals with head, frozen parts run in each epoch, because the images change (shift)" in text


@pytest.mark.parametrize("training", ["tune: full, feature_views: 4", "tune: lora, feature_views: 4"])
def test_lint_says_where_feature_views_has_no_effect(training):
    text = "it makes no difference, since no output of frozen pretrained parts is kept; drop it, or write tune: head."
    assert hints(spec(training)) == [("training.feature_views", text)]
