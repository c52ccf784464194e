"""Generates `gen/crossfade_api` from the .proto files; `--check` says whether it is current.

The generated package has a name of its own: a Python package `crossfade.v1`
would collide with the service's package `crossfade`. So the imports in the
generated files are rewritten; the descriptors keep their canonical names.
"""

import filecmp
import os
import re
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
TARGET = HERE / "gen" / "crossfade_api"
IMPORT = re.compile(r"^(from|import) (crossfade|violet)\.v1\b", re.MULTILINE)


def generate(target: Path) -> None:
    """Writes the package to `target`, which must not exist."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        sources = sorted(str(path.relative_to(HERE)) for path in HERE.glob("*/v1/*.proto"))
        includes = [HERE, resources.files("grpc_tools") / "_proto", _googleapis()]
        arguments = ["protoc", *(f"-I{path}" for path in includes)]
        arguments += [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python")]
        arguments += [f"--mypy_grpc_out={out}", *sources]
        # protoc looks for its plugins on PATH; they lie beside this interpreter.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        if protoc.main(arguments) != 0:  # type: ignore[no-untyped-call]
            raise SystemExit("protoc failed; its message is above")
        for package in ("crossfade", "violet"):
            if (out / package).is_dir():
                shutil.copytree(out / package, target, dirs_exist_ok=True)
    for folder in (target, *(path for path in target.iterdir() if path.is_dir())):
        (folder / "__init__.py").write_text('"""Generated from proto/ by proto/generate.py."""\n')
    (target / "py.typed").touch()
    for path in target.rglob("*_pb2*.py*"):
        path.write_text(IMPORT.sub(r"\1 crossfade_api.v1", path.read_text()))


def _googleapis() -> Path:
    """Where the google/type protos lie: beside their generated code."""
    import google.type

    return Path(next(iter(google.type.__path__))).parent.parent


def differences(left: Path, right: Path) -> list[str]:
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    _, changed, missing = filecmp.cmpfiles(left, right, sorted(names), shallow=False)
    return sorted(changed + missing)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "crossfade_api"
        generate(fresh)
        if "--check" in sys.argv[1:]:
            stale = differences(fresh, TARGET)
            if stale:
                print("generated code is not current, run `make proto`:", *stale, sep="\n  ")
            return 1 if stale else 0
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(fresh, TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
