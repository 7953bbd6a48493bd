"""The table of recorded ViT trainings, the script that makes it, and the surrogate that turns it into tasks."""

import importlib.util
import json
import sys
from dataclasses import replace

import curve_surrogate
import curve_table
import numpy as np
import pytest
import vit_table
from curve_table import BrokenTableError, Head, Recorded, Table, drawn, load_spec, read, write
from helpers.paths import SHARED
from scipy.stats import qmc

from vit_search.config.value_sources import AtQuantiles

TABLES = sorted(path.stem for path in curve_table.FOLDER.glob("*.yaml"))

SEARCH = """
name: tiny
data: {name: digits, val_fraction: 0.4, holdout_fraction: 0, test_fraction: 0.5}
trials: 8
epochs: 2
sampler: qmc
stopping: {kind: none}
model: {patch_size: 4, dim: 16, heads: 2, depth: {int: [1, 2]}}
training: {lr: {float: [1e-3, 1e-2], log: true}, batch_size: 64, flip: {choice: [false, true]}, precision: float32}
"""


@pytest.fixture
def record(tmp_path, monkeypatch, capsys):
    """Run the script on a tiny search file. Returns the table and what was printed."""

    def run(*words, folder="tables", keep="kept"):
        tables = tmp_path / folder
        tables.mkdir(exist_ok=True)
        (tables / "tiny.yaml").write_text(SEARCH)
        command = ["vit_table.py", "--keep", tmp_path / keep, "--tables", tables, "--tasks", "tiny", *words]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        vit_table.main()
        return read(tables / "tiny.csv"), capsys.readouterr().out

    return run


def outcomes(table):
    return {index: (row.params, row.right, row.loss) for index, row in table.rows.items()}


def test_a_recording_that_was_cut_short_goes_on_to_the_same_table(record, tmp_path):
    whole, text = record("--trainings", 3)
    assert "core hours for 3 trainings" in text
    assert [len(row.right) for row in whole.rows.values()] == [2, 2, 2]
    first, _ = record("--trainings", 1, folder="cut", keep="cut-kept")
    (tmp_path / "cut" / "tiny.csv").unlink()  # a process killed before it wrote the table, in the middle of a line
    with (tmp_path / "cut-kept" / "vit_table.jsonl").open("a") as file:
        file.write('\n{"key": "tiny 1')
    second, text = record("--trainings", 3, folder="cut", keep="cut-kept")
    assert "core hours for 2 trainings" in text
    assert outcomes(first) == {0: outcomes(whole)[0]}
    assert outcomes(second) == outcomes(whole)
    again, text = record("--trainings", 3, folder="cut", keep="elsewhere")
    assert "estimated" not in text, "what the table has is not trained again, also without the folder that it came from"
    assert again == second


def test_parts_share_the_trainings(record):
    first, _ = record("--trainings", 3, "--part", "2/2")
    assert list(first.rows) == [1]
    both, _ = record("--trainings", 3, "--part", "1/2")
    assert list(both.rows) == [0, 1, 2]


def test_the_limit_ends_after_the_training_that_runs(record):
    _, text = record("--trainings", 2, "--limit", 0)
    assert "the limit of 0 minutes is over" in text


def test_a_table_of_another_recipe_is_not_added_to(record, tmp_path):
    found, _ = record("--trainings", 1)
    path = tmp_path / "tables" / "tiny.csv"
    write(path, replace(found, head=replace(found.head, recipe="0" * 12)))
    with pytest.raises(BrokenTableError, match="start a table of another name"):
        record("--trainings", 2)
    row = replace(found.rows[0], params=found.rows[0].params | {"depth": 3})
    write(path, Table(found.head, {0: row}))
    with pytest.raises(BrokenTableError, match="training 0 has other parameters than its search file draws"):
        record("--trainings", 2)


@pytest.mark.parametrize("name", TABLES)
def test_training_i_is_trial_i_of_the_search_file(name):
    spec = load_spec(name)
    found = drawn(spec, 20)
    assert list(found) == list(range(20)), "each can be built"
    assert drawn(spec, 7) == {i: found[i] for i in range(7)}
    engine = qmc.Sobol(len(spec.space.searched), scramble=True, rng=spec.seed).fast_forward(19)
    point = spec.space.suggest(AtQuantiles(dict(zip(spec.space.searched, map(float, engine.random(1)[0]), strict=True))))
    assert all(
        value == (point[key] if type(value) is not float else pytest.approx(point[key], rel=1e-3)) for key, value in found[19].items()
    )
    assert all(spec.space.searched[key].fault(value) is None for params in found.values() for key, value in params.items())


@pytest.mark.parametrize("name", TABLES)
def test_the_recorded_trainings_are_whole(name):
    path = curve_table.FOLDER / f"{name}.csv"
    if not path.exists():
        pytest.skip("not recorded yet")
    table, spec = read(path), load_spec(name)
    assert path.stat().st_size < 400_000
    assert table.head.epochs == spec.epochs == 27
    curve_table.check_rows(path, table, drawn(spec, max(table.rows) + 1))
    ends = table.accuracy()[:, -1]
    assert ((table.accuracy() >= 0) & (table.accuracy() <= 1)).all()
    assert ends.min() < 0.7 and ends.max() > 0.8, "the space holds bad and good models"
    assert (table.loss() > 0).all() and (table.seconds() > 0).all()


def synthetic(count):
    """Curves whose height follows from lr and depth, and whose speed from lr."""
    head = Head(recipe="0" * 12, epochs=9, train_images=100, val_images=1000, classes=10)
    rng, rows = np.random.default_rng(0), {}
    for i in range(count):
        params = {
            "depth": int(rng.integers(1, 7)),
            "lr": float(f"{np.exp(rng.uniform(np.log(1e-4), np.log(1e-2))):.4g}"),
            "flip": bool(i % 2),
        }
        height = 0.9 - 0.05 * abs(np.log10(params["lr"]) + 3) ** 2 - 0.02 * abs(params["depth"] - 4)
        shares = height * (1 - np.exp(-np.arange(1, 10) * 300 * params["lr"] ** 0.8))
        right = [round(1000 * share) for share in shares]
        rows[i] = Recorded(params, right, [round(-1000 * np.log(max(share, 0.01))) for share in shares], [5] * 9)
    return Table(head, rows)


SYNTHETIC_SPACE = [
    {"name": "depth", "kind": "int", "lo": 1, "hi": 6, "log": False},
    {"name": "lr", "kind": "float", "lo": 1e-4, "hi": 1e-2, "log": True},
    {"name": "flip", "kind": "cat", "choices": [False, True]},
]


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = synthetic(4)
    table.rows[2] = Recorded(table.rows[2].params | {"optimizer": "muon"}, [300, 500], [2000, 1500], [5, 5])  # diverged in epoch 3
    for index in (0, 1, 3):
        table.rows[index].params["optimizer"] = "adamw"
    write(tmp_path / "t.csv", table)
    found = read(tmp_path / "t.csv")
    assert found == table
    assert found.accuracy()[2].tolist() == [0.3, 0.5] + [0.1] * 7
    assert found.loss()[2] == pytest.approx([2.0, 1.5] + [np.log(10)] * 7)


def test_a_damaged_table_is_refused_with_the_line(tmp_path):
    path = tmp_path / "t.csv"
    write(path, synthetic(3))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BrokenTableError, match=r"t\.csv:5: .* cells instead of 31"):
        read(path)
    path.write_text("index,lr\n0,1\n")
    with pytest.raises(BrokenTableError, match="no table of trainings"):
        read(path)


def test_rungs_are_held_against_the_end_by_hand():
    values = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert list(curve_table.agreement(values)) == [(1, -1.0, 1.0, 0.0)]
    assert list(curve_table.agreement(values[:, [1, 1]])) == [(1, 1.0, 0.0, 1.0)]
    assert curve_table.rungs(27) == [1, 3, 9, 27] and curve_table.rungs(25) == [1, 3, 9, 25]


def test_the_surrogate_predicts_trainings_that_were_left_out():
    table = synthetic(80)
    points = curve_surrogate.encoded(SYNTHETIC_SPACE, table.params())
    ours, nearest = curve_surrogate.left_out(points, table.accuracy(), folds=4)
    true = table.accuracy()

    def error(predicted):
        return np.sqrt(((predicted - true) ** 2).mean())

    assert error(ours) < 0.02
    assert error(ours) < error(nearest) / 2
    assert error(nearest) < true.std()


def test_the_best_configuration_is_the_best_of_the_whole_space():
    table = synthetic(80)
    surrogate, _ = curve_surrogate.fitted(curve_surrogate.encoded(SYNTHETIC_SPACE, table.params()), table.accuracy())
    best, median = curve_surrogate.best_and_median(surrogate, SYNTHETIC_SPACE)
    grid = [
        {"depth": depth, "lr": 10**log, "flip": flip} for depth in range(1, 7) for log in np.linspace(-4, -2, 200) for flip in (False, True)
    ]
    ends = surrogate.predict(curve_surrogate.encoded(SYNTHETIC_SPACE, grid))[:, -1]
    assert best == pytest.approx(ends.max(), abs=1e-4)
    assert median == pytest.approx(np.median(ends), abs=5e-3)


def test_bench_reads_the_tasks_as_they_were_predicted(tmp_path):
    """Both metrics; bench.py is handed out beside the repository."""
    source = SHARED / "bench" / "bench.py"
    if not source.exists():
        pytest.skip("no bench.py beside the checkout")
    loading = importlib.util.spec_from_file_location("bench_of_the_table", source)
    bench = importlib.util.module_from_spec(loading)
    loading.loader.exec_module(bench)
    tables = tmp_path / "tables"
    tables.mkdir()
    search = SEARCH.replace("[1e-3, 1e-2]", "[1e-4, 1e-2]").replace("[1, 2]", "[1, 6]").replace("epochs: 2", "epochs: 9")
    (tables / "digits.yaml").write_text(search)
    table = synthetic(40)
    write(tables / "digits.csv", table)
    names = curve_surrogate.export(tmp_path / "tasks", tables)
    assert names == ["vit_digits_accuracy", "vit_digits_loss"]
    assert "flops_mean" in json.loads((tmp_path / "tasks" / "tasks.json").read_text())["vit_digits_accuracy"]
    for task, metric in zip(bench.load_tasks(str(tmp_path / "tasks"), "all"), curve_surrogate.METRICS.values(), strict=True):
        points = curve_surrogate.encoded(curve_surrogate.space_of(load_spec("digits", tables)), table.params())
        surrogate, _ = curve_surrogate.fitted(points, metric(table))
        for params, curve in list(zip(table.params(), surrogate.predict(points), strict=True))[:5]:
            assert task.values(params, range(1, 10)) == pytest.approx(100 * curve)
        assert task.best > task.med
        run = bench.simulate(task, bench.get_method("asha+random"), 2, 4, seed=0)
        assert run["regret"][-1] >= 0 and run["trials"] > 4
