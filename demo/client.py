"""An example client: ``python -m demo.client --url http://127.0.0.1:7860 examples.txt``.

Reads a file of examples, adapts to it on a server that runs the page, asks a question, and fetches the adapter.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradio_client import Client
from gradio_client.exceptions import AppError
from httpx import HTTPError


def adapt(client: Client, text: str, held_out: int) -> dict[str, Any]:
    """Adapt, and print how far it is.

    Args:
        client: connected to the page; its session owns the model.
        text: examples, in any layout that the page reads.
        held_out: so many are not adapted to, and scored on.

    Returns:
        The last message: the model's id, the report and the explanation.

    Raises:
        AppError: the server refused.
    """
    job = client.submit(text, held_out=held_out, api_name="/adapt")
    for told in job:
        if told["state"] == "running":
            print(f"{100 * told.get('share', 0):3.0f} % {told.get('message', '')}", file=sys.stderr)
        elif told.get("queue"):
            print(f"number {told['queue']} in the queue", file=sys.stderr)
    # raises what the server refused
    done: dict[str, Any] = job.outputs()[-1] if job.exception() is None else job.result()
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Adapt to a file's examples; 1 for what the server refuses."""
    parser = argparse.ArgumentParser(prog="python -m demo.client", description="Adapt on a server.")
    parser.add_argument("examples", type=Path, help="a file of examples: text, JSON, JSONL or CSV")
    parser.add_argument("--url", default="http://127.0.0.1:7860", help="the page (%(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=0, help="examples to score on (%(default)s)"
    )
    parser.add_argument("--question", help="a question to both models")
    parser.add_argument("--option", action="append", default=[], help="an answer to choose from")
    parser.add_argument("--out", type=Path, help="where to put the adapter's zip")
    asked = parser.parse_args(arguments)
    try:
        client = Client(asked.url, verbose=False, analytics_enabled=False)
    except (HTTPError, OSError, ValueError) as error:
        print(f"Error: nothing answers at {asked.url} ({error})", file=sys.stderr)
        return 1
    try:
        done = adapt(client, asked.examples.read_text(encoding="utf-8"), asked.held_out)
        print(done["explanation"])
        if asked.question:
            answers = client.predict(
                done["model"], asked.question, asked.option, api_name="/predict"
            )
            for who in ("base", "adapted"):
                print(f"{who}: {answers[who]['text']}")
        if asked.out:
            shutil.copy(client.predict(done["model"], api_name="/download"), asked.out)
            print(f"saved: {asked.out}")
        client.predict(done["model"], api_name="/forget")
    except (AppError, OSError, UnicodeDecodeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    finally:
        client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
