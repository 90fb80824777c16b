"""Answers many prompts in passes that they share, with the likelihoods of the answers: `python3 batch.py MODEL [PROMPT…]`."""

import sys

import yuan


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} MODEL [PROMPT…]")
    prompts = sys.argv[2:] or [f"{season}日山中 {poet}<sep>" for season in "春夏秋冬" for poet in ("李白", "杜甫", "王维")]
    with yuan.Engine(sys.argv[1]) as engine:
        for prompt, answer in zip(prompts, engine.generate_many(prompts, 24, logprobs=0)):
            likelihood = sum(score.logprob for score in answer.scores or ())
            print(f"{prompt}\t{likelihood:.2f}\t{answer}")
        loop = engine.statistics()["loop"]
        print(f"{loop['sequences']} tokens and prompts in {loop['passes']} passes", file=sys.stderr)


if __name__ == "__main__":
    main()
