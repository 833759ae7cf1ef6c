"""Write docs/cli.md from what `--help` prints, so that it cannot go stale.

python scripts/write_docs.py [--print]
"""

import os
import subprocess
import sys
from pathlib import Path

VERBS = (
    "fill",
    "score",
    "predict",
    "embed",
    "search",
    "info",
    "data",
    "convert",
    "pretrain",
    "finetune",
    "evaluate",
    "layers",
)
HEAD = """# The command line

Made from `--help` by `make docs`; a test compares. Results go to standard output, as a table on a
terminal and as JSON lines elsewhere or with `--json`. A mistake in the call is one line on standard
error and exit code 2; a bad row of a file gets its error in its record, and the exit code is 2.
"""


def main() -> None:
    parts = [HEAD]
    for verb in ((), *((verb,) for verb in VERBS)):
        shown = subprocess.run(
            [sys.executable, "-m", "enrobe", *verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        ).stdout
        title = " ".join(("enrobe", *verb))
        lines = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## {title}\n\n```\n{lines}\n```\n")
    text = "\n".join(parts)
    if "--print" in sys.argv:
        print(text, end="")
    else:
        target = Path(__file__).parents[1] / "docs/cli.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main()
