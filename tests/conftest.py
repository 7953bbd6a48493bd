"""Where tests keep what they make: a data cache of their own, shared by the session, and no tracking server by accident."""

import os
from collections import Counter

import pytest

# pytest imports readline, which writes the size of a terminal into the environment of all processes that tests start.
for _name in ("COLUMNS", "LINES"):
    if _name not in os.environ:
        os.unsetenv(_name)


# Trials that step back for other programs, as they do by default, take many times as long on a busy machine.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 -- Ray's spelling
os.environ["OMP_NUM_THREADS"] = "1"  # as a trial has it; before anything imports torch. Small tensors gain nothing from two threads


WALKED = ("tests/system/test_end_to_end.py", "tests/system/test_config_train.py", "tests/system/test_resume_after_kill.py")
"""Their tests share one search that was run, killed and promoted."""


LONG = (
    "tests/test_walk.py",
    *WALKED,
    *(f"tests/system/test_{name}.py" for name in ("tutorials", "pretrained_search", "recorder", "trial_faults")),
)
"""What takes minutes begins first, so that no process is left alone with it at the end."""


def pytest_collection_modifyitems(items):
    """The order in which pytest-xdist gives files away: LONG, then the others by their number of tests."""
    counts = Counter(item.nodeid.partition("::")[0] for item in items)

    def place(item):
        path = item.nodeid.partition("::")[0]
        return LONG.index(path) if path in LONG else len(LONG), -counts[path], path

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each of pytest-xdist's processes gets whole files, whose tests share fixtures; one process gets those of WALKED."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return "walked" if path in WALKED else path

    config.option.loadscopereorder = False  # the order of the tests is that of the files
    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def own_surroundings(tmp_path_factory):
    os.environ["VIT_SEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def no_tracking_server_left_behind():
    """MLflow's set_tracking_uri writes to the environment, which the commands that later tests start would inherit."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """An empty database of MLflow's; to make one takes seconds."""
    from vit_search.tracking import mlflow_client  # MLflow, which few tests need

    path = tmp_path_factory.mktemp("empty") / "mlruns.db"
    mlflow_client.client_for(f"sqlite:///{path}")
    return path


@pytest.fixture
def fresh_compiler():
    """For a test that compiles: torch gives up after 8 shapes of one function in a process, and other tests have compiled it, too."""
    import torch  # which many tests do not need

    torch.compiler.reset()
