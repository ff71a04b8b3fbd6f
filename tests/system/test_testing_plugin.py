"""The pytest plugin that an application's tests get: a real broker, a fresh topic, and nothing left afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zbroker.errors import ConfigError
from zbroker.testing import Broker

APPLICATION_TEST = """
from zbroker.client.admin import AdminClient

names = []


def test_the_topic_is_there_and_the_broker_is_real(zbroker_server, zbroker_topic):
    print("directory", zbroker_server.directory)
    names.append(zbroker_topic)
    assert "worker-0" in zbroker_server.process_names()
    with AdminClient(bootstrap_servers=zbroker_server.bootstrap_servers) as admin:
        assert zbroker_topic in admin.list_topics()


def test_the_next_test_has_another_topic_on_the_same_broker(zbroker_server, zbroker_topic):
    assert zbroker_topic not in names
    with AdminClient(bootstrap_servers=zbroker_server.bootstrap_servers) as admin:
        assert names[0] not in admin.list_topics()
"""


def test_an_applications_tests_get_a_broker_and_a_topic(tmp_path: Path) -> None:
    (tmp_path / "test_application.py").write_text(APPLICATION_TEST)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-s",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "2 passed" in found.stdout, found.stdout + found.stderr
    directory = re.findall(r"directory (\S+)", found.stdout)
    assert len(directory) == 1
    assert not Path(directory[0]).exists()


def test_the_plugin_imports_nothing_of_the_broker_before_it_is_asked() -> None:
    code = "import sys, zbroker.testing.plugin; print([n for n in sys.modules if n.startswith(('zmq', 'msgspec'))])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_wrong_settings_are_refused_before_anything_is_made() -> None:
    before = set(os.listdir("/dev/shm"))
    with pytest.raises(ConfigError):
        Broker(config={"workers": {"count": "many"}})
    with pytest.raises(ConfigError):
        Broker(config={"topics": {"segment_bytes": 4096}})
    mine = f"zbt-{os.getpid()}-"  # other tests of this process may keep a broker of their own
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith(mine)]


def test_data_in_a_directory_of_choice_are_kept(tmp_path: Path) -> None:
    with Broker(directory=tmp_path / "kept") as broker:
        assert broker.paths.data_dir == tmp_path / "kept" / "data"
    assert (tmp_path / "kept" / "data" / "metadata").is_dir()
    assert list((tmp_path / "kept" / "run").iterdir()) == []
