"""A corpus through the model: every row once, with the texts of one machine, whatever is lost on the way."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from conftest import ROWS, more
from ray.cluster_utils import Cluster

import yuan
import yuan.ray.data

ASKED: Dict[str, Any] = {"temperature": 0.9, "seed": 4}


def corpus(path: Path, rows: int) -> List[str]:
    """A file of prompts. The last has none."""
    prompts = [f"Psalms {number}:{number % 7 + 1}<sep>" if number % 2 else f"{number}日山中 李白<sep>" for number in range(rows)]
    texts: List[Any] = [*prompts[:-1], None]
    pq.write_table(pa.table({"id": list(range(rows)), "prompt": texts, "kept": [number / 2 for number in range(rows)]}), path)
    return prompts[:-1]


def written(out: Path) -> pa.Table:
    return pq.read_table(out).sort_by("id")


def test_a_node_is_lost_in_the_middle(cluster: Cluster, model: str, engine: yuan.Engine, folder: Path) -> None:
    prompts = corpus(folder / "in.parquet", ROWS)
    out = folder / "out"
    lost = more(cluster, num_cpus=1)
    killed: List[int] = []
    rows = max(16, ROWS // 150)
    files_at_last = math.ceil(ROWS / rows)

    def kill() -> None:
        while len(killed) == 0:
            files = len(list(out.glob("*.parquet")))
            if files >= files_at_last // 3:
                killed.append(files)
                cluster.remove_node(lost, allow_graceful=False)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    begin = time.monotonic()
    # Three engines. That of the node that is lost begins anew where there is room, which is beside the driver.
    done = yuan.ray.data.answer(str(folder / "in.parquet"), str(out), model, id="id", max_tokens=16, rows=rows, workers=3, **ASKED)
    took = time.monotonic() - begin
    killer.join()
    assert done == ROWS
    found = written(out)
    assert found.column("id").to_pylist() == list(range(ROWS)), "every row is there once"
    assert found.column("kept").to_pylist() == [number / 2 for number in range(ROWS)]
    print(f"{ROWS} rows in {took:.0f} s; a node was killed when {killed[0]} of {files_at_last} files were there")
    begin = time.monotonic()
    alone = engine.generate_many(prompts, 16, logprobs=0, **ASKED)
    print(f"one engine here: {time.monotonic() - begin:.0f} s")
    assert found.column("answer").to_pylist() == [*map(str, alone), None]
    likely = [sum(score.logprob for score in answer.scores or ()) for answer in alone]
    assert found.column("logprob").to_pylist() == [*likely, None]
    assert found.column("tokens").to_pylist() == [*(len(answer.tokens) for answer in alone), None]
    assert [error for error in found.column("error").to_pylist() if error] == ["the column prompt is empty"]


def test_a_job_that_was_ended_goes_on(cluster: Cluster, model: str, engine: yuan.Engine, folder: Path) -> None:
    corpus(folder / "in.parquet", 40)
    out, checkpoint = folder / "out", folder / "out.checkpoint"
    asked: Dict[str, Any] = {"id": "id", "column": "prompt", "rows": 8}
    assert yuan.ray.data.score(str(folder / "in.parquet"), str(out), model, **asked) == 40
    whole = written(out)
    assert whole.column("logprob")[3].as_py() == sum(score.logprob for score in engine.score("Psalms 3:4<sep>"))
    # As it is when the driver goes away: two files were written, of which one is not counted yet, and one is half there.
    files = sorted(out.glob("*.parquet"))
    assert len(files) == 5
    for file in files[:2]:
        count = checkpoint / f"{file.stem.rpartition('-')[0]}.parquet"
        count.rename(count.with_suffix(".pending.parquet"))
    files[1].write_bytes(files[1].read_bytes()[:100])
    assert yuan.ray.data.score(str(folder / "in.parquet"), str(out), model, **asked) == 16
    assert written(out).equals(whole)
    # There is nothing left to do, and no other job to be done there.
    assert yuan.ray.data.score(str(folder / "in.parquet"), str(out), model, **asked) == 0
    with pytest.raises(ValueError, match="was begun with"):
        yuan.ray.data.answer(str(folder / "in.parquet"), str(out), model, id="id")
    assert written(out).equals(whole)


def test_conversations_in_a_pipeline_of_ones_own(cluster: Cluster, model: str, engine: yuan.Engine) -> None:
    talks: List[Any] = [
        [{"role": "user", "content": "春日山中 李白"}],
        [{"role": "user", "content": "秋夜"}, {"role": "assistant", "content": "明月", "reasoning_content": "月"}, {"role": "user", "content": "杜甫"}],
        [{"role": "user", "content": "春" * 2000}],
    ]
    given = ray.data.from_arrow(pa.table({"talk": talks}))
    asked: Dict[str, Any] = {"column": "talk", "max_tokens": 12}
    how: Dict[str, Any] = {"batch_format": "pyarrow", "compute": ray.data.ActorPoolStrategy(size=1), "num_cpus": 1}
    found = given.map_batches(yuan.ray.data.Answers, fn_constructor_args=(model,), fn_constructor_kwargs=asked, **how).take_all()
    assert [row["answer"] for row in found] == [engine.chat(talks[0], 12), engine.chat(talks[1], 12), None]
    assert "tokens" in found[2]["error"] and found[2]["logprob"] is None


def test_what_is_wrong_is_said_before(cluster: Cluster, model: str, folder: Path) -> None:
    corpus(folder / "in.parquet", 4)
    source, out = str(folder / "in.parquet"), str(folder / "out")
    with pytest.raises(ValueError, match="no column question: there are id, prompt, kept"):
        yuan.ray.data.answer(source, out, model, id="id", column="question")
    with pytest.raises(TypeError, match="called 'max_tokens' here"):
        yuan.ray.data.answer(source, out, model, id="id", max_new_tokens=3)
    wrong: Dict[str, Any]
    for wrong in ({"rows": 0}, {"workers": 0}, {"workers": (3, 2)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            yuan.ray.data.answer(source, out, model, id="id", **wrong)
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    with pytest.raises(ValueError, match="not empty"):
        yuan.ray.data.answer(source, out, model, id="id")
