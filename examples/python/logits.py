"""Shows the likeliest next tokens, computed with NumPy from the logits: `python3 logits.py MODEL TEXT`."""

import sys

import numpy as np

import yuan


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} MODEL TEXT")
    with yuan.Engine(sys.argv[1]) as engine, engine.session() as session:
        session.eval(engine.tokenize(sys.argv[2]))
        logits = session.logits()
        likelihoods = np.exp(logits - logits.max())
        likelihoods /= likelihoods.sum()
        for token in np.argsort(-likelihoods)[:5]:
            print(f"{likelihoods[token]:.4f}  {engine.detokenize([int(token)])!r}")


if __name__ == "__main__":
    main()
