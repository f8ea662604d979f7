"""``python -m benchmarks`` (``make bench``): every comparison in turn.

``--quick`` takes one look at each; without it the whole takes about half an hour.
"""

import argparse
import os
import subprocess
import sys

QUICK_TOO = ("training_speed", "generation_speed", "tokenizer_speed", "lora_speed")


def main() -> int:
    """Run them; gives the worst exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one look at each; leaves out the recipe")
    quick = parser.parse_args().quick
    plan = [[name, "--quick"] if quick else [name] for name in QUICK_TOO]
    if not quick and os.environ.get("MINIGPT_DATA"):
        plan.append(["shakespeare_recipe"])
    code = 0
    for name, *options in plan:
        code = max(code, subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode)
    if not quick and len(plan) == len(QUICK_TOO):
        print("for the recipe of tiny Shakespeare set MINIGPT_DATA to the folder with tinyshakespeare.txt")
    return code


if __name__ == "__main__":
    sys.exit(main())
