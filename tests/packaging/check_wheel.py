"""Build the source archive and the wheel, install the wheel into an empty environment, and use it outside the checkout.

`make test-wheel` runs this. It takes minutes, since all dependencies are installed anew.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = {
    ("prefopt", "--help"): (0, "verify"),
    ("prefopt", "algorithms"): (0, "simpo"),
    ("prefopt", "explain", "dpo"): (0, "2305.18290"),
    # The example of the README: a DPO with a mistake in it. It is found, and the command says so with its exit status.
    ("prefopt", "verify", f"{ROOT}/docs/examples/my_losses.py:loss", "--as", "dpo"): (1, "Likely cause"),
    # Every page's template is there and can be read.
    (
        "python",
        "-c",
        "from prefopt.evaluation import page\n"
        "for name in page.environment().list_templates(): print(name, page.environment().get_template(name).filename)",
    ): (0, "style.css"),
}
"""What is run, with the exit status and the words that are expected of it."""


def main() -> int:
    """Run all of it.

    Returns:
        The exit status: 0 if every command did what is expected.
    """
    with tempfile.TemporaryDirectory(prefix="prefopt-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        check_contents(wheel)
        binaries = install(wheel, folder / "environment")
        outside = folder / "elsewhere"
        outside.mkdir()
        failed = [command for command in COMMANDS if not run(binaries, command, outside)]
    print(f"{len(COMMANDS) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def build(out: Path) -> Path:
    """The wheel, which is built from the source archive, so that a file missing in either is missed below."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    print(f"built {archive.name} and {wheel.name}")
    return wheel


def check_contents(wheel: Path) -> None:
    """Refuse a wheel with anything but the package and what describes it, or without a tracked file of the package."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    strange = sorted(name for name in packed if not name.startswith(("prefopt/", "prefopt-")))
    listed = subprocess.run(["git", "ls-files", "prefopt"], cwd=ROOT, check=True, capture_output=True, text=True)
    missing = sorted(set(listed.stdout.split()) - packed)
    if strange or missing:
        sys.exit(f"{wheel.name}: strange files {strange}, missing files {missing}.")


def install(wheel: Path, environment: Path) -> Path:
    """Install into an environment of its own, with the pinned versions of all dependencies.

    Returns:
        The folder of its commands.
    """
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    binaries = environment / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return binaries


def run(binaries: Path, command: tuple[str, ...], outside: Path) -> bool:
    """Run a command where no checkout is near, and say what came of it."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PATH"] = f"{binaries}{os.pathsep}{environment.get('PATH', '')}"
    program, *arguments = command
    found = subprocess.run(
        [str(binaries / program), *arguments], cwd=outside, env=environment, capture_output=True, text=True
    )
    status, words = COMMANDS[command]
    good = found.returncode == status and words in found.stdout and "Traceback" not in found.stderr
    print(f"{'passed' if good else 'FAILED'}: {' '.join(command)[:100]!r} (exit status {found.returncode})", flush=True)
    if not good:
        print(f"expected exit status {status} and {words!r}\n{found.stdout}\n{found.stderr}")
    return good


if __name__ == "__main__":
    sys.exit(main())
