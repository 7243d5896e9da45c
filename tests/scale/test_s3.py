"""A run whose data folder is a bucket of a server that speaks S3's protocol."""

from __future__ import annotations

import fsspec
import pytest

from tests.pipelines.helpers import run
from tests.pipelines.test_runs import numbers

pytest.importorskip("s3fs", reason="s3fs is not installed: make test-scale")
server = pytest.importorskip("moto.server", reason="moto is not installed: make test-scale")


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket's filesystem."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    files = fsspec.filesystem("s3")
    files.mkdir("s3://bucket")
    yield files
    fsspec.filesystem("s3").clear_instance_cache()
    running.stop()


@pytest.mark.slow
def test_a_run_in_a_bucket_comes_to_the_same_numbers(project, reference, bucket, tmp_path):
    for environment in ("base", "smoke"):
        (project.conf / environment / "globals.yml").write_text("data: s3://bucket/run\n")
    run(project)
    run(project, "report")
    bucket.invalidate_cache()
    bucket.get("s3://bucket/run/", str(tmp_path / "copy"), recursive=True)
    made, expected = numbers(tmp_path / "copy"), numbers(reference.data)
    assert {name: made.get(name) for name in expected} == expected
