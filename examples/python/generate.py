"""Continues a prompt: `python3 generate.py MODEL PROMPT [TOKENS]`."""

import sys

import yuan


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: {sys.argv[0]} MODEL PROMPT [TOKENS]")
    most = int(sys.argv[3]) if len(sys.argv) == 4 else 64
    try:
        with yuan.Engine(sys.argv[1]) as engine:
            for text in engine.stream(sys.argv[2], most):
                print(text, end="", flush=True)
            print()
    except yuan.YuanError as error:
        sys.exit(f"error: {error} ({error.status})")


if __name__ == "__main__":
    main()
