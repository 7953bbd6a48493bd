"""Training and checkpoints: the laws that every later feature must keep."""

import dataclasses
import json
import shutil

import pytest
import torch

from vit_search.config.data_config import DataConfig
from vit_search.config.model_config import ModelConfig
from vit_search.config.training_config import TrainingConfig
from vit_search.config.trial import TrialConfig
from vit_search.data.batches import Split
from vit_search.data.cache import prepare, read_split
from vit_search.errors import CheckpointError, DamagedCheckpointError
from vit_search.vit import augment, checkpoint, training
from vit_search.vit.evaluation import Normalisation
from vit_search.vit.schedule import lr_at
from vit_search.vit.training import fit, latency_ms, start

CONFIG = TrialConfig(
    data=DataConfig(name="digits", train_limit=200),
    model=ModelConfig(image_size=(8, 8), in_channels=1, num_classes=10, patch_size=4, dim=16, heads=2, depth=2, dropout=0.1, drop_path=0.1),
    training=TrainingConfig(epochs=3, batch_size=32, lr=3e-3, shift=1, flip=True),
    seed=1,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = prepare(CONFIG.data, cache=tmp_path_factory.mktemp("cache"))
    splits = {name: Split(*(torch.tensor(part) for part in read_split(data, name))) for name in ("train", "val")}
    return splits["train"], splits["val"], Normalisation.of(data.mean, data.std)


def numbers(results):
    """What must be equal: all but how long it took and how much memory the process holds."""
    timing = ("seconds", "images_per_s", "peak_memory_bytes")
    return [{k: v for k, v in dataclasses.asdict(r).items() if k not in timing} for r in results]


def weights(state):
    return state.model.state_dict().values()


def test_the_same_seed_gives_the_same_bits(digits):
    train, val, normalisation = digits
    first, second = (start(CONFIG, normalisation) for _ in range(2))
    assert numbers(fit(first, train, val)) == numbers(fit(second, train, val))
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    other = start(dataclasses.replace(CONFIG, seed=2), normalisation)
    assert numbers(fit(other, train, val)) != numbers(first.history)


@pytest.mark.parametrize("cut", [1, 2])
def test_resumed_equals_uninterrupted_to_the_bit(digits, tmp_path, cut):
    train, val, normalisation = digits
    whole = start(CONFIG, normalisation)
    list(fit(whole, train, val))
    broken = start(CONFIG, normalisation)
    for _, _result in zip(range(cut), fit(broken, train, val), strict=False):
        checkpoint.save(tmp_path / "c", broken, classes=tuple("0123456789"), data_hash="h")
    torch.manual_seed(99)  # another process has another global state
    resumed = checkpoint.load_training(tmp_path / "c", CONFIG)
    assert resumed.epoch == cut
    list(fit(resumed, train, val))
    assert numbers(resumed.history) == numbers(whole.history)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))


def test_training_learns(digits):
    train, val, normalisation = digits
    config = dataclasses.replace(CONFIG, training=TrainingConfig(epochs=20, batch_size=32, lr=5e-3))
    results = list(fit(start(config, normalisation), train, val))
    assert results[-1].val_accuracy > 0.6  # 0.1 is chance; 200 images, one second
    assert results[-1].train_loss < results[0].train_loss


def test_the_learning_rate_climbs_then_falls_along_a_cosine():
    config = TrainingConfig(epochs=1, lr=1.0, warmup_fraction=0.2)
    assert [lr_at(step, 10, config) for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert lr_at(10, 10, config) == pytest.approx(0.0)


def test_a_loss_that_is_not_finite_ends_the_training_at_once_and_says_where(digits):
    train, val, normalisation = digits
    state = start(CONFIG, normalisation)
    with torch.no_grad():
        state.model.head.weight[0, 0] = float("nan")
    with pytest.raises(training.DivergedError, match="the loss is nan in epoch 1, step 1 of 7"):
        next(fit(state, train, val))


def test_normalised_training_images_have_mean_0_and_deviation_1(digits):
    train, _, normalisation = digits
    values = augment.normalise(train.images, normalisation.mean, normalisation.std)
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_shift_moves_each_image_by_its_own_offset_and_fills_with_black():
    image = torch.zeros(64, 1, 3, 3, dtype=torch.uint8)
    image[:, 0, 1, 1] = 9
    moved = augment.shift(image, 1, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    assert all(int(one.sum()) == 9 for one in moved)  # from the centre, one pixel moves nobody out
    assert len({int(one.argmax()) for one in moved}) == 9  # all nine places are reached


@pytest.fixture
def saved(digits, tmp_path):
    train, val, normalisation = digits
    state = start(CONFIG, normalisation)
    next(fit(state, train, val))
    checkpoint.save(tmp_path / "c", state, classes=tuple("0123456789"), data_hash="h")
    return tmp_path / "c", state


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMISER])
def test_a_damaged_file_is_refused(saved, name):
    folder, _ = saved
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{name}: its sha256 is not the recorded one"):
        checkpoint.load_training(folder, CONFIG)


def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(saved):
    folder, _ = saved
    other = dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, lr=1e-4))
    with pytest.raises(CheckpointError, match=r"training\.lr was 0\.003 when it was saved and is now 0\.0001"):
        checkpoint.load_training(folder, other)


def test_a_swap_cut_in_two_is_finished_with_the_old_checkpoint(saved):
    folder, state = saved
    folder.rename(folder.with_name("c.old"))  # a crash between the two renames
    assert checkpoint.exists(folder)
    assert all(torch.equal(a, b) for a, b in zip(weights(checkpoint.load_model(folder)), weights(state), strict=True))


def test_a_config_of_another_schema_is_refused(saved):
    folder, _ = saved
    document = json.loads((folder / checkpoint.CONFIG).read_text())
    document["config"]["schema"] = 2
    del document["sha256"][checkpoint.CONFIG]  # a file whose own digest is right, as another version would write it
    (folder / checkpoint.CONFIG).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="config schema is 2; this version reads 1"):
        checkpoint.load_model(folder)


def test_a_checkpoint_damaged_anywhere_is_replaced_by_the_one_before_it_or_refused(saved, tmp_path):
    """Each file cut, changed by one bit and emptied at 10 places: never is damage taken for a training.

    One change is none: the last of 17 digits may differ and the number be the same.
    """
    folder, state = saved
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    for name in (checkpoint.CONFIG, checkpoint.MODEL, checkpoint.OPTIMISER):
        whole = (before / name).read_bytes()
        for place in range(0, len(whole) - 1, len(whole) // 10):  # without its last newline, a file of JSON is whole
            for damage in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
                if name == checkpoint.CONFIG and _same_document(damage, whole):
                    continue
                (folder / name).write_bytes(damage)
                with pytest.raises(DamagedCheckpointError):
                    checkpoint.load_training(folder, state.config)
                shutil.copytree(before, folder.with_name(folder.name + ".old"))
                again = checkpoint.load_training(folder, state.config)
                assert again.epoch == state.epoch
                assert not folder.with_name(folder.name + ".old").exists()  # it stands in the place of the damaged one
                checkpoint.load_training(folder, state.config)


def _same_document(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_the_generation_before_stays_until_the_trial_is_over(saved):
    folder, state = saved
    for _ in range(2):
        checkpoint.save(folder, state, classes=("a",), data_hash="x")
    assert sorted(p.name for p in folder.parent.iterdir() if p.name.startswith(folder.name)) == [folder.name, f"{folder.name}.old"]
    checkpoint.drop_older(folder)
    assert sorted(p.name for p in folder.parent.iterdir() if p.name.startswith(folder.name)) == [folder.name]


def test_latency_is_that_of_one_image(saved):
    _, state = saved
    sizes = []
    state.model.embed.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[0]))
    assert 0 < latency_ms(state.model, calls=4) < 1000
    assert sizes == [1] * 9
