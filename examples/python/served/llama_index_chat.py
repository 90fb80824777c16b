"""LlamaIndex with a running server: `yuan serve yuan2-m32.gguf`, then `python3 llama_index_chat.py http://127.0.0.1:8080 QUESTION`.

    python3 -m pip install llama-index-llms-openai-like
"""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} URL QUESTION")
    model = OpenAILike(api_base=f"{sys.argv[1]}/v1", api_key="none", model="yuan", is_chat_model=True, temperature=0, max_tokens=24)
    for reply in model.stream_chat([ChatMessage(role="user", content=sys.argv[2])]):
        print(reply.delta or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
