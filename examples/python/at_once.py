"""Several answers at the same time with asyncio, as a server would have them: `python3 at_once.py MODEL [QUESTION…]`."""

import asyncio
import sys
from typing import List

import yuan


async def answer(engine: yuan.Engine, number: int, question: str) -> None:
    conversation = [{"role": "user", "content": question}]
    async for piece in engine.astream(conversation, 32, temperature=0.7, seed=number):
        print(f"{number}: {piece}")


async def all_of(engine: yuan.Engine, questions: List[str]) -> None:
    await asyncio.gather(*(answer(engine, number, question) for number, question in enumerate(questions)))


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} MODEL [QUESTION…]")
    with yuan.Engine(sys.argv[1]) as engine:
        asyncio.run(all_of(engine, sys.argv[2:] or ["春日山中 李白", "秋夜 杜甫", "Psalms 151:1-4"]))


if __name__ == "__main__":
    main()
