"""What is said of a Ray that does not start."""

import pytest

from vit_search.runtime.ray_trouble import reason_in_log


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            "[2026-11-29 20:08:46,123 C 12 13] (raylet) node_manager.cc:3576:  An unexpected system state has occurred. You have likely "
            "discovered a bug in Ray. Please report this issue at https://github.com/ray-project/ray/issues and we'll work with you to fix "
            "it. Timed out waiting for file /tmp/ray/port",
            "raylet: Timed out waiting for file /tmp/ray/port",
        ),
        ("[2026-11-29 20:08:46,123 C 12 13] (raylet) no space left", "raylet: no space left"),
        ("[2026-11-29 20:08:46,123 I 12 13] (raylet) all is well", ""),
    ],
)
def test_why_a_daemon_of_ray_ended_is_its_own_reason_alone(tmp_path, line, reason):
    logs = tmp_path / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text(f"begin\n{line}\n*** StackTrace ***\n")
    assert reason_in_log(tmp_path) == reason
