"""The tests of `yuan.ray`, on a cluster of several nodes on this machine: `YUAN_TEST_MODEL=demo.gguf python3 -m pytest tools/python/ray_tests`, where Ray is installed.
YUAN_RAY_ROWS is how many rows the corpus has (300)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Iterator

# Before Ray is imported, which hands them on. Nodes that are started on a busy machine take their time; workers that nobody has asked for take a second of a processor each.
os.environ.update({
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0", "RAY_agent_register_timeout_ms": "300000",
    "RAY_health_check_initial_delay_ms": "60000", "RAY_health_check_timeout_ms": "60000", "RAY_enable_metrics_collection": "0",
    "RAY_worker_register_timeout_seconds": "300", "RAY_worker_niceness": "0", "RAY_idle_worker_killing_time_threshold_ms": "600000", "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_SERVE_REQUEST_PROCESSING_TIMEOUT_S": "600",
})  # fmt: skip

import pytest  # noqa: E402
import ray  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

import yuan  # noqa: E402

ROOT = Path(__file__).parents[3]
ROWS = int(os.environ.get("YUAN_RAY_ROWS", "300"))
POETS = ["李白", "杜甫", "王维", "孟浩然"]
PROMPTS = [f"{season}日山中 {poet}<sep>" for season in "春夏秋冬" for poet in POETS]
MEMORY = 80 * 2**20


@pytest.fixture(scope="session")
def model() -> str:
    """The demo model."""
    return os.environ["YUAN_TEST_MODEL"]


@pytest.fixture(scope="session")
def engine(model: str) -> Iterator[yuan.Engine]:
    """It, open here: what all others have to say, too."""
    with yuan.Engine(model, threads=1) as opened:
        yield opened


def more(cluster: Cluster, **how: Any) -> Any:
    """Another node. Ray gives one half a minute to start, which is little on a busy machine."""
    for attempt in range(5):
        try:
            return cluster.add_node(object_store_memory=MEMORY, include_dashboard=False, **how)
        except Exception as error:
            if attempt == 4:
                raise
            print(f"a node did not start: {error}")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node for the driver, and what is read and written, and two for engines."""
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="yuan-ray-", ignore_cleanup_errors=True) as home:
        started = Cluster()
        for cpus in (3, 1, 1):
            more(started, num_cpus=cpus, temp_dir=home)
        ray.init(address=started.address, log_to_driver=False)
        yield started
        ray.shutdown()
        started.shutdown()


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
