"""The driver: a search is a fold over its ledger (law 2), and what it answers to each report."""


import pytest
from simulation import GPUS, Book, World, driver_of, in_a_copy, told

from vit_search.search import stopping
from vit_search.search.components import Images, components_of
from vit_search.spec import rungs, search_file
from vit_search.tracking.ledger import Launched, Proposed

FILE = """
name: t
data: {{name: digits}}
trials: 60
epochs: 4
concurrency: 4
seed: 3
sampler: {sampler}
stopping: {stopping}
model: {{patch_size: 2, dim: {{choice: [16, 24, 32]}}, heads: {{choice: [2, 3]}}, depth: {{int: [1, 4]}}}}
training: {{lr: {{float: [1e-4, 1e-2], log: true}}, batch_size: {{choice: [256, 2048, 8192]}}}}
"""
ASHA = "{grace_epochs: 1, reduction_factor: 2, audit_share: 0.1}"
SHARED = "resources: {cpus: auto, gpus: auto, gpu_memory: 16GiB}\n"
COMMANDS = [
    (15, "set", {"trials": 40, "concurrency": 6}),
    (30, "add", {"dim": 32, "heads": 2, "depth": 2}),
    (40, "pause", {}),
    (50, "set", {"patience": 300}),
]
LAUNCHED, FIRST = Launched(host="here", pid=1), [{"depth": 4}]
CASES = {
    **{f"sampler {name}": (FILE.format(sampler=name, stopping=ASHA), {}) for name in ("gp", "tpe", "random", "qmc", "auto")},
    "sampler grid": (FILE.format(sampler="grid", stopping=ASHA).replace("{float: [1e-4, 1e-2], log: true}", "1e-3"), {}),
    "sampler cmaes": (FILE.format(sampler="cmaes", stopping=ASHA), {}),
    **{
        f"stopping {kind}": (FILE.format(sampler="random", stopping=ASHA.replace("{", f"{{kind: {kind}, strata: {strata}, ")), {})
        for kind, strata in (("asha", 2), ("hyperband", 1), ("median", 2), ("none", 1))
    },
    "several objectives": (FILE.format(sampler="tpe", stopping=ASHA) + "objectives: [{metric: params}, {metric: val_loss}]\n", {}),
    "a loss": (FILE.format(sampler="tpe", stopping=ASHA) + "metric: val_loss\n", {}),
    "commands": (FILE.format(sampler="gp", stopping=ASHA), {"commands": COMMANDS}),
    "commands and lost nodes": (FILE.format(sampler="random", stopping=ASHA), {"commands": COMMANDS, "losses": 0.2}),
    "limits": (FILE.format(sampler="random", stopping=ASHA) + "limits: {device_hours: 0.02, patience: 40}\n", {}),
    "lost nodes": (FILE.format(sampler="random", stopping=ASHA), {"losses": 0.2}),
    "shared GPUs": (FILE.format(sampler="random", stopping=ASHA) + SHARED, {"outgrows": 0.5, "losses": 0.1}),
}


def world(spec, book, more, components=None):
    made = {"components": components} if components else {"nodes": GPUS if spec.resources.gpu_memory else None, "first": FIRST}
    return World(driver_of(spec, book, **made), book, **more)


@pytest.mark.parametrize("case", CASES)
def test_a_search_cut_off_after_any_event_goes_on_as_the_one_that_was_not(case, monkeypatch):
    text, more = CASES[case]
    spec = search_file.parse(text)
    parts = rungs.boundaries(spec.space, spec.stopping.strata)
    monkeypatch.setattr(stopping, "boundaries", lambda space, strata: parts)  # always the same, and slow
    whole = told(world(spec, Book([LAUNCHED]), more).run())
    assert sum(isinstance(event, Proposed) for event in whole) >= 20
    slow = case in ("sampler cmaes", "shared GPUs")  # to rebuild; then each cut is made in a copy of what was rebuilt so far
    components = components_of(spec, Images(1, 10), nodes=GPUS if spec.resources.gpu_memory else None, first=FIRST)
    components.apply(LAUNCHED)

    def next_events(cut):
        """What the search that was cut off there writes next."""
        book = Book([LAUNCHED, *whole[:cut]])
        rebuilt = world(spec, book, more, components if slow else None)
        while len(told(book.events)) == cut and rebuilt.step():
            pass
        return told(book.events)[cut:], rebuilt.driver.ending

    for cut, event in enumerate(whole):
        came, ending = in_a_copy(lambda: next_events(cut)) if slow else next_events(cut)  # noqa: B023 -- it is called at once
        assert came == whole[cut : cut + len(came)], cut
        assert came or ending  # a search whose limit was reached does not take up what was running
        if slow:
            components.apply(event)


def test_and_comes_to_the_same_end():
    text, more = CASES["commands and lost nodes"]
    spec = search_file.parse(text)
    whole = told(world(spec, Book([LAUNCHED]), more).run())
    assert {type(event) for event in whole} == {Proposed, Infeasible, Reported, Broke, Ended, Commanded}
    for cut in range(len(whole)):
        book = Book([LAUNCHED, *whole[:cut], LAUNCHED])
        assert told(world(spec, book, more).run()) == whole
