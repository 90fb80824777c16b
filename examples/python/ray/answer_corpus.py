"""A corpus through the model, on all machines of a Ray cluster: `python3 answer_corpus.py MODEL QUESTIONS.parquet ANSWERS`.

The file has the columns id and question; ANSWERS is a folder of Parquet files. Model, file and folder lie at the same paths on every machine. Stopped or lost, the job goes on when
it is started again. RAY_ADDRESS names the cluster; without one there is one of this machine.

    python3 -m pip install 'yuan[ray]'
"""

import os
import sys

import ray

import yuan.ray.data


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(f"usage: {sys.argv[0]} MODEL QUESTIONS.parquet ANSWERS")
    model, questions, answers = map(os.path.abspath, sys.argv[1:])
    ray.init(log_to_driver=False)
    engines = sum(node["Alive"] for node in ray.nodes())
    done = yuan.ray.data.answer(questions, answers, model, id="id", column="question", chat=True, max_tokens=24, workers=engines)
    print(f"{done} answers are in {answers}")


if __name__ == "__main__":
    main()
