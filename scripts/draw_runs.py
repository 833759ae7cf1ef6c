"""Draw the loss of runs that follow each other as one curve.

python scripts/draw_runs.py RUN_FOLDER... --output PICTURE.png
"""

import argparse
from pathlib import Path

from enrobe.train.curves import draw
from enrobe.train.log import LOG


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw([run / LOG for run in options.runs], options.output)


if __name__ == "__main__":
    main()
