"""Build the sdist and, from it, the wheel; check both; run the wheel in an environment of what it asks for alone.

    python .ci/package.py dist

The environment has the distributions that the wheel requires, as links to those installed here: nothing is downloaded,
and what the wheel imports without asking for is missing. The package itself is not importable from the checkout.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    ("--version",),
    ("state", "power:p=2"),
    ("studies",),
    ("run", "assoc-recall:pairs=4", "--arch", "linear", "--set", "train.steps=3", "--report", "report.html"),
)
"""Commands that run away from the checkout: text, packaged data, figures, and a training of three steps."""
RELATIVE_LINK = re.compile(r"\]\((?!https?:|#)[^)]*\)")


def run(*command: str | Path, folder: Path = ROOT) -> str:
    """Run a command without the paths of this process; return its output, or exit with it if the command fails."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=own, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """Build the sdist and the wheel into an empty folder, check what an index would show, and return the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    files = sorted(folder.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    (wheel,) = (path for path in files if path.suffix == ".whl")
    readme = run(sys.executable, "-c", f"import zipfile as z; w = z.ZipFile({str(wheel)!r}); "
                 "print(w.read(next(n for n in w.namelist() if n.endswith('METADATA'))).decode())")  # fmt: skip
    if found := RELATIVE_LINK.findall(readme):
        sys.exit(f"an index shows no files beside the README; it has no links to them; got {found[:3]}")
    return wheel


def requirements(name: str, found: set[str]) -> set[str]:
    """Add a distribution and, through all its requirements without extras, the others that it needs."""
    if canonicalize_name(name) not in found:
        found.add(canonicalize_name(name))
        for text in importlib.metadata.requires(name) or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                requirements(need.name, found)
    return found


def make_environment(folder: Path, wheel: Path) -> Path:
    """Make an environment with links to what the wheel needs, install the wheel there, and return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in sorted(requirements("icl-bench", set()) - {"icl-bench"}):
        own = importlib.metadata.distribution(name)
        for top in {Path(str(path)).parts[0] for path in own.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(own.locate_file(top))))
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    return python


def main() -> None:
    """Build into the folder that is named, and try the wheel."""
    wheel = build(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        python = make_environment(Path(temporary) / "environment", wheel)
        away = Path(temporary) / "away"
        away.mkdir()
        place = run(python, "-c", "import icl_bench; print(icl_bench.__file__)", folder=away)
        if not place.startswith(temporary):
            sys.exit(f"the wheel itself is tried; got {place}")
        for command in COMMANDS:
            run(python.with_name("icl-bench"), *command, folder=away)
    sys.stdout.write(f"{wheel.name} and its sdist are whole; {len(COMMANDS)} commands ran from the wheel alone\n")


if __name__ == "__main__":
    main()
