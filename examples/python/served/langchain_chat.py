"""LangChain with a running server: `yuan serve yuan2-m32.gguf`, then `python3 langchain_chat.py http://127.0.0.1:8080 QUESTION`.

    python3 -m pip install langchain-openai
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from pydantic import SecretStr


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} URL QUESTION")
    model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key=SecretStr("none"), model="yuan", temperature=0, max_completion_tokens=24)
    chain = ChatPromptTemplate.from_messages([("user", "{question}")]) | model | StrOutputParser()
    for piece in chain.stream({"question": sys.argv[2]}):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
