"""A corpus through the model, by Ray Data.

    import yuan.ray.data
    yuan.ray.data.answer("/shared/questions.parquet", "/shared/answers", "/models/yuan2-m32.gguf", id="id", column="question", chat=True, workers=3, cpus=8)

Parquet in, Parquet out: every column that came in, and what the model says of it. Ray Data's checkpoints keep count of the rows whose answers are written: a job that was ended,
with its driver or the whole cluster, goes on where it was when it is called again, and every row is there once. `Answers` and `Likelihoods` are for pipelines of your own
(`map_batches`)."""

from __future__ import annotations

import json
import os
import random
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

import pyarrow as pa
import pyarrow.dataset as datasets
import pyarrow.fs as filesystems
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from ..answer import Answer, Score
from ..errors import OutOfMemoryError
from ..options import Wanted
from ..session import Session
from ._place import opened

__all__ = ["Answers", "Likelihoods", "answer", "score"]

_NEW = {
    "answer": pa.string(), "finish": pa.string(), "logprob": pa.float64(), "tokens": pa.int64(), "error": pa.string(),
}  # fmt: skip


class Answers:
    """For `map_batches(…, batch_format="pyarrow")`: adds what the model answers to a column of texts or of conversations (`answer`), why the answer ended (`finish`), the natural
    logarithm of its probability (`logprob`), how many `tokens` it has, and in place of all that an `error` where there is none."""

    columns = ("answer", "finish", "logprob", "tokens", "error")

    def __init__(
        self, model: str, *, column: str = "prompt", chat: bool = False, max_tokens: int = 256, options: Optional[Mapping[str, Any]] = None,
        engine: Optional[Mapping[str, Any]] = None,
    ) -> None:  # fmt: skip
        self._engine = opened(model, engine or {})
        self._column, self._chat, self._max_tokens, self._options = column, chat, max_tokens, {"logprobs": 0, **(options or {})}

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch, with the new columns."""
        given = batch.column(self._column).to_pylist()
        prompts = [self._prompt(text) for text in given]
        # A row without a text is an error of its own.
        there = [number for number, text in enumerate(given) if text is not None]
        answers = self._engine.generate_many([prompts[number] for number in there], self._max_tokens, return_exceptions=True, **self._options)
        rows: List[Dict[str, Any]] = [{"error": f"the column {self._column} is empty"} for _ in given]
        for number, said in zip(there, answers):
            rows[number] = _of_answer(said)
        return _with(batch, self.columns, rows)

    def _prompt(self, given: Any) -> Any:
        if self._chat:
            return [{"role": "user", "content": given}]
        if isinstance(given, list) and given and isinstance(given[0], dict):
            # Arrow's messages have all fields that one of them has.
            return [{name: value for name, value in message.items() if value is not None} for message in given]
        return given


class Likelihoods:
    """For `map_batches(…, batch_format="pyarrow")`: adds how likely the texts of a column are: the natural logarithm of the probability of all tokens but the first (`logprob`), how many
    `tokens` that are, and in place of both an `error` where there are none."""

    columns = ("logprob", "tokens", "error")

    def __init__(self, model: str, *, column: str = "text", engine: Optional[Mapping[str, Any]] = None) -> None:
        self._engine = opened(model, engine or {})
        self._column = column

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch, with the new columns."""
        works = [self._work(text) for text in batch.column(self._column).to_pylist()]
        return _with(batch, self.columns, self._engine._crowd.each(self._engine, works))

    def _work(self, text: Optional[str]) -> Callable[[Session], Dict[str, Any]]:
        def work(session: Session) -> Dict[str, Any]:
            try:
                if text is None:
                    raise ValueError(f"the column {self._column} is empty")
                scores: List[Score] = session.score(session.engine.tokenize(text))
            except OutOfMemoryError:  # It is tried again when others have ended.
                raise
            except Exception as error:
                return {"error": str(error)}
            return {"logprob": sum(score.logprob for score in scores), "tokens": len(scores)}

        return work


def _of_answer(said: Union[Answer, Exception]) -> Dict[str, Any]:
    if isinstance(said, Exception):
        return {"error": str(said)}
    likely = sum(score.logprob for score in said.scores or ())
    return {"answer": str(said), "finish": said.finish, "logprob": likely, "tokens": len(said.tokens)}


def _with(batch: pa.Table, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    for name in columns:
        batch = batch.append_column(name, pa.array([row.get(name) for row in rows], _NEW[name]))
    return batch


def answer(
    source: Union[str, List[str]], out: str, model: str, *, id: str, column: str = "prompt", chat: bool = False, max_tokens: int = 256, rows: int = 64,
    workers: Union[int, Tuple[int, int]] = 1, cpus: float = 1.0, memory: Optional[int] = None, gpus: float = 0.0, engine: Optional[Mapping[str, Any]] = None,
    **options: Any,
) -> int:  # fmt: skip
    """Writes answers to the texts or conversations in a column of Parquet files into the folder `out`, and says how many rows were left to do. The columns that come in stay; those that
    are new are `Answers.columns`.

    `id` names a column whose values are all different. `workers` engines, or as few as the first of two numbers and as many as the second, each with `cpus`, `memory` (bytes) and `gpus` of
    one machine, take `rows` rows at a time. Leave a processor of each machine free, for reading and writing. `options` are those of `yuan.Engine.generate`; answers that are drawn
    without a seed get one, which is kept, so that a job that goes on draws the same. `source`, `out` and `model` are there, by the same names, on every machine."""
    Wanted.of(None, **options).done()
    work = {"column": column, "chat": chat, "max_tokens": max_tokens, "options": options}
    return _write(Answers, source, out, model, id, work, rows, workers, {"num_cpus": cpus, "memory": memory, "num_gpus": gpus}, engine)


def score(
    source: Union[str, List[str]], out: str, model: str, *, id: str, column: str = "text", rows: int = 64, workers: Union[int, Tuple[int, int]] = 1,
    cpus: float = 1.0, memory: Optional[int] = None, gpus: float = 0.0, engine: Optional[Mapping[str, Any]] = None,
) -> int:  # fmt: skip
    """Writes how likely the texts in a column of Parquet files are into the folder `out`, as `answer` writes answers. The new columns are `Likelihoods.columns`."""
    work = {"column": column}
    return _write(Likelihoods, source, out, model, id, work, rows, workers, {"num_cpus": cpus, "memory": memory, "num_gpus": gpus}, engine)


def _write(
    kind: Type[Union[Answers, Likelihoods]], source: Union[str, List[str]], out: str, model: str, id: str, work: Dict[str, Any], rows: int,
    workers: Union[int, Tuple[int, int]], place: Dict[str, Any], engine: Optional[Mapping[str, Any]],
) -> int:  # fmt: skip
    if rows < 1:
        raise ValueError(f"rows is {rows}: give how many rows are taken at a time, 1 or more")
    least, most = (workers, workers) if isinstance(workers, int) else workers
    if not 1 <= least <= most:
        raise ValueError(f"workers is {workers}: give a number from 1 on, or the least and the largest one")
    target = _Target(out)
    corpus = _dataset(source)
    names = corpus.schema.names
    for name in (id, work["column"]):
        if name not in names:
            raise ValueError(f"{source} has no column {name}: there are {', '.join(names)}")
    taken = sorted(set(names) & set(kind.columns))
    if taken:
        raise ValueError(f"{source} has columns {', '.join(taken)} already, which are to be new: rename them")
    job = target.job({"kind": kind.__name__, "source": source, "model": model, "id": id, "engine": dict(engine or {}), **work})
    asked = {**work, "engine": engine}
    if "options" in work:
        asked["options"] = job["options"]
    # To be written are those rows that were not.
    total, before = corpus.count_rows(), target.done()
    given = ray.data.read_parquet(source)
    given.context.checkpoint_config = CheckpointConfig(id, target.checkpoint, delete_checkpoint_on_success=False)
    if before != total:
        said = given.repartition(target_num_rows_per_block=rows).map_batches(
            kind, batch_size=rows, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            fn_constructor_args=(model,), fn_constructor_kwargs=asked, num_cpus=place["num_cpus"], num_gpus=place["num_gpus"] or None, memory=place["memory"],
        )  # fmt: skip
        said.write_parquet(target.out)
    there = target.written()
    if not total == there == target.done():
        raise RuntimeError(f"{source} has {total} rows, and {out} has {there}: is {id} different in every row? Has another job written there?")
    left: int = total - before
    return left


def _dataset(source: Union[str, List[str]]) -> datasets.Dataset:
    paths = [source] if isinstance(source, str) else source
    return datasets.dataset([datasets.dataset(path, format="parquet") for path in paths])


class _Target:
    """A folder for what is written, and beside it what is known of it."""

    def __init__(self, out: str) -> None:
        self._files, path = filesystems.FileSystem.from_uri(out if "://" in out else os.path.abspath(out))
        self._path = path.rstrip("/")
        self.out = out.rstrip("/") if "://" in out else self._path
        self.checkpoint = f"{self.out}.checkpoint"

    def done(self) -> int:
        """How many rows Ray Data has counted as written."""
        return self._rows(f"{self._path}.checkpoint", lambda path: not path.endswith(".pending.parquet"))

    def written(self) -> int:
        """How many rows are written."""
        return self._rows(self._path, lambda path: True)

    def _rows(self, folder: str, is_meant: Callable[[str], bool]) -> int:
        found = self._files.get_file_info(filesystems.FileSelector(folder, allow_not_found=True))
        paths = [info.path for info in found if info.path.endswith(".parquet") and is_meant(info.path)]
        rows: int = datasets.dataset(paths, filesystem=self._files).count_rows() if paths else 0
        return rows

    def job(self, job: Dict[str, Any]) -> Dict[str, Any]:
        """What is to be done, as it was begun. Another job has another folder."""
        path = f"{self._path}.job.json"
        wanted: Dict[str, Any] = json.loads(json.dumps(job))
        if self._files.get_file_info(path).type != filesystems.FileType.NotFound:
            with self._files.open_input_stream(path) as stream:
                begun: Dict[str, Any] = json.loads(stream.read())
            for name in sorted({*begun, *wanted}):
                was, is_ = begun.get(name), wanted.get(name)
                if isinstance(was, dict) and isinstance(is_, dict) and name == "options":
                    is_ = {**{word: value for word, value in was.items() if word == "seed"}, **is_}
                if was != is_:
                    raise ValueError(f"{self.out} was begun with {name} {was!r}, and {is_!r} is asked for: give another folder, or remove {self.out}, {self.checkpoint} and {path}")
            return begun
        if self._files.get_file_info(self._path).type != filesystems.FileType.NotFound and self._files.get_file_info(filesystems.FileSelector(self._path)):
            raise ValueError(f"{self.out} is not empty, and no job has begun it: give another folder")
        if wanted.get("options", {}).get("temperature"):
            wanted["options"].setdefault("seed", random.SystemRandom().randrange(2**63))
        self._files.create_dir(self._path.rpartition("/")[0] or "/", recursive=True)
        with self._files.open_output_stream(f"{path}.new") as stream:
            stream.write(json.dumps(wanted, ensure_ascii=False).encode())
        self._files.move(f"{path}.new", path)
        return wanted
