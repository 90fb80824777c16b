"""Holds a conversation, line by line: `python3 chat.py MODEL [--tokens N]`."""

import argparse
import sys
from typing import Dict, List

import yuan


def main() -> None:
    parser = argparse.ArgumentParser(description="Holds a conversation, line by line.")
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=512, help="of an answer at most")
    arguments = parser.parse_args()
    messages: List[Dict[str, str]] = []
    # The session keeps what was said, so that a turn reads only what is new.
    with yuan.Engine(arguments.model) as engine, engine.session() as session:
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            try:
                answer = session.chat(
                    messages, arguments.tokens, on_text=lambda piece: print(piece, end="", flush=True), temperature=0.7, top_p=0.9
                )
                messages.append({"role": "assistant", "content": answer})
            except KeyboardInterrupt:  # Ctrl-C ends the answer, and not the conversation.
                messages.pop()
            print()


if __name__ == "__main__":
    main()
