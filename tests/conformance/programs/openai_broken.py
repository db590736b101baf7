"""What the openai SDK raises where a stream breaks: `... <base URL> <key> <what is asked>`.

Out: a line with the stream's id once some pieces of it came, then a line with what was raised.
"""

from __future__ import annotations

import json
import sys

import openai

N_PIECES = 5


def main() -> None:
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)
    texts: list[str] = []
    try:
        for chunk in client.completions.create(**json.loads(sys.argv[3])):
            texts += [choice.text for choice in chunk.choices]
            if len(texts) == N_PIECES:
                sys.stdout.write(f"{chunk.id}\n")
                sys.stdout.flush()
    except openai.APIError as error:
        said = {"kind": type(error).__name__, "code": error.code, "text": "".join(texts)}
        sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main()
