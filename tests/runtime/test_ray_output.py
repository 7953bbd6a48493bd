"""What Ray prints while it starts stays off the terminal where it means nothing for a search."""

import logging
import socket

from ray._private import services

from vit_search.runtime import ray_session  # noqa: F401 -- it sets Ray up


def test_a_dashboard_that_does_not_start_is_not_reported(caplog, tmp_path):
    logging.getLogger("ray").setLevel(logging.ERROR)  # as ray.init does it
    folder = str(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        started = services.start_api_server(
            include_dashboard=False,
            raise_on_failure=False,
            host="127.0.0.1",
            gcs_address="127.0.0.1:1",
            cluster_id_hex="",
            node_ip_address="127.0.0.1",
            temp_dir=folder,
            logdir=folder,
            session_dir=folder,
            port=taken.getsockname()[1],
        )
    assert started == (None, None)  # Ray goes on without it
    assert caplog.records == []
