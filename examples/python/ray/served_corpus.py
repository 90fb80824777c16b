"""A corpus through a running server, by Ray's own processor: `yuan serve yuan2-m32.gguf`, then `python3 served_corpus.py http://127.0.0.1:8080 QUESTIONS.parquet ANSWERS`.

The file has the columns id and question; ANSWERS is a folder of Parquet files. Where the server's queue is full (status 429) the processor waits and asks again.

    python3 -m pip install 'yuan[ray]'
"""

import os
import sys
from typing import Any, Dict

import ray
import ray.data
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def asked(row: Dict[str, Any]) -> Dict[str, Any]:
    messages = [{"role": "user", "content": row["question"]}]
    return {"id": row["id"], "payload": {"messages": messages, "max_tokens": 24, "temperature": 0}}


def said(row: Dict[str, Any]) -> Dict[str, Any]:
    return {"id": row["id"], "answer": row["http_response"]["choices"][0]["message"]["content"]}


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} URL QUESTIONS.parquet ANSWERS")
    ray.init(log_to_driver=False)
    # No more at a time than the server runs and lets wait (--sequences, --queue).
    config = HttpRequestProcessorConfig(url=f"{sys.argv[1]}/v1/chat/completions", batch_size=16, concurrency=1, max_retries=5)
    processor = build_processor(config, preprocess=asked, postprocess=said)
    processor(ray.data.read_parquet(sys.argv[2])).write_parquet(os.path.abspath(sys.argv[3]))


if __name__ == "__main__":
    main()
