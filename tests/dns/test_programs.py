"""Real resolvers on a machine whose own one answers everything: no name of the mesh reaches it, and others resolve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dns.hostile import VIP, WILD
from tests.support import ROOT, need_root_or_userns, popen

pytestmark = pytest.mark.netns
SEVERAL = ("worker", "worker.mesh", "gone", "gone.mesh", "x.worker", "worker-0.peer.mesh", "db", "example.org")
"""A route, one that is gone, what is below a route, a peer, a host of the search domain, a host outside."""
FOUND = {
    **dict.fromkeys(("worker", "worker.mesh"), VIP),
    **dict.fromkeys(("gone", "gone.mesh", "x.worker"), "-"),
    "worker-0.peer.mesh": "100.96.0.1",
    **dict.fromkeys(("db", "example.org"), WILD),
}


def run(folder: Path, *program: str, **environment: str) -> dict[str, str]:
    """What the program says of each name, a line `name address` each, once nothing of ours was seen outside."""
    need_root_or_userns()
    for needed in ("unshare", program[0]):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    harness = [sys.executable, str(ROOT / "tests/dns/hostile.py"), str(folder), *program]
    argv = ["unshare", "--net", "--mount", "--propagation", "private", *harness]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    asked = (folder / "asked").read_text().split()
    ours = [name for name in asked if {"worker", "gone", "mesh", "peer", "127", "96"} & set(name.split("."))]
    assert ours == [], asked
    assert asked, "the program did not ask by this resolver"
    return dict(line.split(" ", 1) for line in out.splitlines())


def test_glibc(tmp_path: Path) -> None:
    """getaddrinfo, both families apart: an AAAA-only look-up of a route goes on through the search list."""
    script = "".join(
        f"echo {name} $(getent ahostsv4 {name} | sed -n 's/ .*STREAM.*//p' | grep . || echo -)\n"
        f"echo {name}/6 $(getent ahostsv6 {name} | grep -v '^::ffff:' | sed -n 's/ .*STREAM.*//p' | grep . || echo -)\n"
        for name in SEVERAL
    )
    found = run(tmp_path, "sh", "-c", script + f"echo reverse $(getent hosts {VIP} | sed 's/.* //')\n")
    assert {name: found[name] for name in SEVERAL} == FOUND
    assert [found[f"{name}/6"] for name in ("worker", "gone", "x.worker")] == ["-", "-", "-"]
    assert found["reverse"] == "worker.mesh"


NODE = """
const dns = require('dns').promises;
(async () => {
  const many = await Promise.allSettled([...Array(1000).keys()].map(n => dns.resolve4(`n${n}.example.org`)));
  console.log('failed ' + many.filter(it => it.status !== 'fulfilled').map(it => it.reason.code));
  for (const name of process.argv.slice(2)) {
    const one = await dns.lookup(name, {family: 4}).then(it => it.address, () => '-');
    const two = await dns.resolve4(name).then(it => it[0], () => '-');
    console.log(`${name} ${one}`);
    console.log(`${name}/c-ares ${two}`);
    for (const type of ['AAAA', 'SRV', 'TXT', 'MX', 'CAA', 'NAPTR']) await dns.resolve(name, type).catch(() => 0);
  }
  console.log('srv ' + (await dns.resolveSrv('_api._tcp.mesh'))[0].name);
})();
"""


def test_node(tmp_path: Path) -> None:
    """Both of its resolvers, other types, and 1,000 look-ups at once. These come first: by answers that come soon its
    c-ares learns to wait for a quarter of a second only, whoever answers."""
    (tmp_path / "program.js").write_text(NODE)
    found = run(tmp_path, "node", "program.js", *SEVERAL)
    assert {name: found[name] for name in SEVERAL} == FOUND
    assert found["worker.mesh/c-ares"] == VIP
    assert (found["gone.mesh/c-ares"], found["x.worker/c-ares"]) == ("-", "-")
    assert (found["srv"], found["failed"]) == ("worker-0.peer.mesh", "")


JAVA = """
import java.net.InetAddress;
import java.util.Hashtable;
import javax.naming.directory.InitialDirContext;
class Program {
  public static void main(String[] names) throws Exception {
    for (String name : names) {
      String found = "-";
      try { found = InetAddress.getByName(name).getHostAddress(); } catch (java.net.UnknownHostException error) { }
      System.out.println(name + " " + found);
    }
    var settings = new Hashtable<String, String>();
    settings.put("java.naming.factory.initial", "com.sun.jndi.dns.DnsContextFactory");
    var context = new InitialDirContext(settings);
    for (String name : names)
      try { context.getAttributes(name, new String[] {"TXT", "SRV", "AAAA"}); }
      catch (javax.naming.NamingException error) { }
  }
}
"""


def test_java(tmp_path: Path) -> None:
    """InetAddress, and the resolver of JNDI with other types."""
    (tmp_path / "Program.java").write_text(JAVA)
    found = run(tmp_path, "java", "-Djava.net.preferIPv4Stack=true", "Program.java", *SEVERAL)
    assert found == FOUND


GRPC = """
import concurrent.futures, sys, grpc
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
assert server.add_insecure_port("127.10.1.2:9090")
server.start()
for name in sys.argv[1:]:
    with grpc.insecure_channel(f"dns:///{name}:9090", options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/none/None")(b"", timeout=5, wait_for_ready=False)
        except grpc.RpcError as error:
            code = error.code()
    # A server that does not know the method was reached; a name that does not resolve, or leads outside, was not.
    print(name, "reached" if code == grpc.StatusCode.UNIMPLEMENTED else "-")
server.stop(None)
"""


def test_grpc(tmp_path: Path) -> None:
    """Its resolver is c-ares, which also asks for SRV and TXT records of names of its own making."""
    (tmp_path / "program.py").write_text(GRPC)
    found = run(
        tmp_path, sys.executable, "program.py", *SEVERAL,
        GRPC_DNS_RESOLVER="ares", GRPC_EXPERIMENTAL_ENABLE_SRV_RECORDS="true",
    )  # fmt: skip
    assert {name for name, it in found.items() if it == "reached"} == {"worker", "worker.mesh"}


MUSL = """
#include <netdb.h>
#include <stdio.h>
#include <arpa/inet.h>
int main(int count, char **names) {
  for (int i = 1; i < count; i++)
    for (int six = 0; six < 2; six++) {
      struct addrinfo hints = {.ai_family = six ? AF_INET6 : AF_INET}, *found;
      char text[64] = "-";
      if (!getaddrinfo(names[i], 0, &hints, &found)) getnameinfo(found->ai_addr, found->ai_addrlen, text, 64, 0, 0, 1);
      printf("%s%s %s\\n", names[i], six ? "/6" : "", text);
    }
}
"""


def test_musl(tmp_path: Path) -> None:
    """It asks all servers at once and takes the first answer."""
    compiler = shutil.which("musl-gcc")
    if compiler is None:
        pytest.skip("musl-gcc is not installed: apt-get install musl-tools")
    (tmp_path / "program.c").write_text(MUSL)
    subprocess.run([compiler, "-static", "-o", "program", "program.c"], cwd=tmp_path, check=True)
    found = run(tmp_path, str(tmp_path / "program"), *SEVERAL)
    assert {name: found[name] for name in SEVERAL} == FOUND
    assert [found[f"{name}/6"] for name in ("worker", "gone", "x.worker")] == ["-", "-", "-"]


GO = """
package main
import ("context"; "fmt"; "net"; "os")
func main() {
  resolver := &net.Resolver{PreferGo: true}
  for _, name := range os.Args[1:] {
    found, err := resolver.LookupIP(context.Background(), "ip4", name)
    if err != nil { fmt.Println(name, "-") } else { fmt.Println(name, found[0]) }
    resolver.LookupTXT(context.Background(), name)
    resolver.LookupSRV(context.Background(), "", "", name)
    resolver.LookupIP(context.Background(), "ip6", name)
  }
}
"""


@pytest.mark.long
def test_go(tmp_path: Path) -> None:
    """Its own resolver, which reads resolv.conf itself. Long, as its standard library is built first."""
    if (go := shutil.which("go")) is None:
        pytest.skip("go is not installed")
    (tmp_path / "program.go").write_text(GO)
    subprocess.run([go, "build", "-o", "program", "program.go"], cwd=tmp_path, check=True)
    assert run(tmp_path, str(tmp_path / "program"), *SEVERAL) == FOUND
