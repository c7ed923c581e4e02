"""Small programs that look a name up, in the languages that applications come in, and images to run them in."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from meshctl.engine import Engine

C = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
int main(int count, char **words) {
    struct addrinfo hints, *found;
    char text[64];
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    int code = count == 2 ? getaddrinfo(words[1], NULL, &hints, &found) : EAI_NONAME;
    if (code) { fprintf(stderr, "%s\n", gai_strerror(code)); return 1; }
    inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text);
    puts(text);
    return 0;
}
"""
GO = """package main
import ("fmt"; "net"; "os")
func main() {
	found, err := net.LookupHost(os.Args[1])
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	for _, address := range found { if net.ParseIP(address).To4() != nil { fmt.Println(address); return } }
}
"""
JAVA = """public class Lookup {
    public static void main(String[] words) throws Exception {
        System.out.println(java.net.InetAddress.getByName(words[0]).getHostAddress());
    }
}
"""
NODE = (
    "require('dns').lookup(process.argv[1], {family: 4}, (error, address) => "
    "{ if (error) { console.error(error.message); process.exit(1) } console.log(address) })"
)
PYTHON = "import socket, sys; print(socket.getaddrinfo(sys.argv[1], None, socket.AF_INET)[0][4][0])"


def need(program: str, package: str) -> str:
    """Path of a program of the machine; skips without it."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not on this machine (Debian, Ubuntu: apt-get install {package})")
    return found


def compiled_c(folder: Path, compiler: str) -> Path:
    """The C program, linked statically."""
    (folder / "lookup.c").write_text(C)
    target = folder / f"lookup-{Path(compiler).name}"
    _run([compiler, "-static", "-O1", "-o", str(target), str(folder / "lookup.c")])
    return target


def compiled_go(folder: Path, *, cgo: bool) -> Path:
    """The Go program, with Go's own resolver or the C library's."""
    go = need("go", "golang-go")
    if cgo:
        need("gcc", "gcc")
    (folder / "lookup.go").write_text(GO)
    target = folder / f"lookup-{'cgo' if cgo else 'netgo'}"
    # With -trimpath the standard library comes out of the cache that building Consul filled, where it did.
    environ = {**os.environ, "CGO_ENABLED": str(int(cgo)), "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    tags = ("-tags", "netcgo") if cgo else ()
    _run([go, "build", "-trimpath", *tags, "-o", str(target), str(folder / "lookup.go")], environ)
    return target


def _run(argv: list[str], environ: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


def bare_image(engine: Engine, reference: str, files: dict[str, Path], links: dict[str, str]) -> str:
    """An image that holds `files` (path inside → file here), `links` and empty folders for what Docker mounts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "etc", "run", "tmp"):
            item = tarfile.TarInfo(folder)
            item.type, item.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(item)
        for place, file in files.items():
            item = tarfile.TarInfo(place.lstrip("/"))
            item.size, item.mode = file.stat().st_size, 0o755
            with file.open("rb") as content:
                archive.addfile(item, content)
        for place, target in links.items():
            item = tarfile.TarInfo(place.lstrip("/"))
            item.type, item.linkname = tarfile.SYMTYPE, target
            archive.addfile(item)
    argv = [engine.docker, "import", "-", reference]
    done = subprocess.run(argv, input=buffer.getvalue(), capture_output=True, env=engine.environ, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return reference
