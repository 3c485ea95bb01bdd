"""Build empty stand-ins for the CUDA libraries that torch names, so that its CUDA build is imported without them.

    python stand_ins.py TORCH_LIB_FOLDER OUT_FOLDER

torch_xla 2.9 needs torch 2.9, whose wheel on PyPI is the CUDA build: its libraries take 2.6 GB that no test calls into.
libcudart is not among them: its registration of kernels runs as torch is loaded.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# Library -> how the names begin that torch takes from it without saying where they are.
PREFIXES = {
    "libcublas.so.12": "cublas(?!Lt)", "libcublasLt.so.12": "cublasLt", "libcudnn.so.9": "cudnn",
    "libcufft.so.11": "cufft", "libcusparse.so.12": "cusparse(?!Lt)", "libcusparseLt.so.0": "cusparseLt",
    "libcurand.so.10": "curand", "libnccl.so.2": "nccl|pnccl", "libcufile.so.0": "cuFile",
    "libnvshmem_host.so.3": "nvshmem|nvshmemi|nvshmemx", "libcusolver.so.11": "cusolver",
    "libnvrtc.so.12": "nvrtc",
}  # fmt: skip
UNVERSIONED = ("", "")


def read_elf(path: Path, *options: str) -> list[str]:
    return subprocess.run(["readelf", *options, path], capture_output=True, text=True, check=False).stdout.splitlines()


def wanted_by(folder: Path) -> tuple[set[str], dict[tuple[str, str], set[tuple[str, str]]]]:
    """List the libraries that those in a folder name, and by library and version the symbols they lack, with kinds."""
    libraries: set[str] = set()
    symbols: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for path in folder.glob("*.so*"):
        libraries |= {name for line in read_elf(path, "-dW") for name in re.findall(r"NEEDED.*\[(.*?)\]", line)}
        library, by_version = "", {}
        for line in read_elf(path, "-VW"):
            if found := re.search(r"File: (\S+)", line):
                library = found[1]
            elif found := re.search(r"Name: (\S+)", line):
                by_version[found[1]] = library
        for words in map(str.split, read_elf(path, "--dyn-syms", "-W")):
            if len(words) < 8 or words[6] != "UND":
                continue
            name, _, version = words[7].replace("@@", "@").partition("@")
            if not version:
                symbols[UNVERSIONED].add((name, words[3]))
            elif version in by_version:
                symbols[by_version[version], version].add((name, words[3]))
    return libraries, symbols


def build(library: str, symbols: dict[tuple[str, str], set[tuple[str, str]]], out: Path) -> None:
    """Compile one library of functions that return an error, with the versions that its symbols are asked for in."""
    versions = {version: own for (file, version), own in symbols.items() if file == library}
    own = {one for one in symbols[UNVERSIONED] if re.match(f"({PREFIXES[library]})", one[0])}.union(*versions.values())
    lines = [f"void *{n}[64];" if kind == "OBJECT" else f"int {n}(void) {{ return 999; }}" for n, kind in sorted(own)]
    source, script = out / "source.c", out / "versions.map"
    source.write_text("\n".join([*dict.fromkeys(lines), f"int stand_in_{re.sub(r'[^a-zA-Z0-9]', '_', library)};", ""]))
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", str(out / library), str(source)]
    command.append(f"-Wl,-soname,{library}")
    if versions:
        blocks = [
            f"{version} {{ global: {' '.join(f'{name};' for name, _ in sorted(names))} }};"
            for version, names in versions.items()
        ]
        script.write_text("\n".join(blocks) + "\n")
        command.append(f"-Wl,--version-script,{script}")
    subprocess.run(command, check=True)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    libraries, symbols = wanted_by(folder)
    for library in sorted(libraries & set(PREFIXES)):
        build(library, symbols, out)


if __name__ == "__main__":
    main()
