"""Generates `src/gen` from the .proto files; `--check` says whether it is current.

protoc comes from the project's virtual environment, its TypeScript plugin (ts-proto) from
`npm ci` in this folder. What the options mean for the code:

    oneof=unions-value   a Value is {$case: "stringValue", value: "..."}: one type at a time
    forceLong=bigint     int64 keeps its 64 bits
    useMapType           a document's fields are a Map: a field may be called "__proto__"
"""

import filecmp
import os
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"
TARGET = HERE / "src" / "gen"
SOURCES = (
    "crossfade/v1/crossfade.proto",
    "crossfade/v1/document.proto",
    "crossfade/v1/query.proto",
    "google/protobuf/struct.proto",
    "google/protobuf/timestamp.proto",
    "google/protobuf/wrappers.proto",
    "google/type/latlng.proto",
    "violet/v1/violet.proto",
)
OPTIONS = (
    "oneof=unions-value",
    "forceLong=bigint",
    "useMapType=true",
    "useDate=false",
    "outputServices=grpc-js",
    "outputJsonMethods=false",
    "outputPartialMethods=false",
    "esModuleInterop=true",
    "importSuffix=.js",
    # They stand in the .proto files; those of google/ are not ours to repeat.
    "comments=false",
    # Which protoc it was is the lock file's business.
    "annotateFilesWithVersion=false",
)


def generate(target: Path) -> None:
    """Writes the modules to `target`, a folder."""
    import google.type

    googleapis = Path(next(iter(google.type.__path__))).parent.parent
    includes = [PROTO, resources.files("grpc_tools") / "_proto", googleapis]
    os.environ["PATH"] = os.pathsep.join(
        (str(HERE / "node_modules" / ".bin"), os.environ.get("PATH", ""))
    )
    arguments = ["protoc", *(f"-I{path}" for path in includes)]
    arguments += [f"--ts_proto_out={target}", f"--ts_proto_opt={','.join(OPTIONS)}", *SOURCES]
    if protoc.main(arguments) != 0:  # type: ignore[no-untyped-call]
        raise SystemExit("protoc failed; its message is above")


def differences(left: Path, right: Path) -> list[str]:
    names = {
        str(path.relative_to(root))
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file()
    }
    _, changed, missing = filecmp.cmpfiles(left, right, sorted(names), shallow=False)
    return sorted(changed + missing)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if "--check" in sys.argv[1:]:
            stale = differences(fresh, TARGET)
            if stale:
                print("run clients/typescript/generate.py, not current:", *stale, sep="\n  ")
            return 1 if stale else 0
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(fresh, TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
