"""Turns evaluated HCL into groups: which fields there are, their types and names. Pure.

What concerns several entries at once (unique names, ports, addresses) is in `topology.checks`.

Long because it is a list: each field of cluster.tf is read here, by the same few helpers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from topology import servicemesh
from topology.addresses import INGRESS_SOURCE
from topology.egress import MESH, EgressEntry, EgressError, roots_of
from topology.expressions import Node, Unknown
from topology.manifest import Permissions
from topology.model import ROLES, Backend, Group, Route, WorkloadSecret
from topology.names import why_no_label
from topology.problems import Problems, Where, did_you_mean
from topology.public import HTTP1, INGRESSES, MTLS, Public, normal
from topology.servicemesh import StringError
from topology.variables import VARIABLE, why_obeyed

MAX_REPLICAS = 1000
MOST_DIGITS = 19
"""Python converts no more than 4300 at once; counts need far fewer."""

_GROUP_FIELDS = (
    "replicas", "compose", "compose_env", "backends", "routes", "secrets", "calls", "mesh_addresses", "egress",
    "servicemesh_egress", "servicemesh_ingress",
)  # fmt: skip
_BACKEND_FIELDS = (
    "port", "workload", "registration", "consul_permissions", "callers", "source_address", "proxy_protocol", "ingress",
    "public",
)  # fmt: skip
_PUBLIC_FIELDS = ("port", "sans", "wildcard", "alpn")
_NO_ADDRESS = (
    "is no field: a public listener is on every IPv4 address of the CVM, as the platform's gateway dials one of them; "
    "on IPv6 (`::`) nobody could be led there, and a CVM may have none; remove it"
)
_NO_PUBLIC_FIELDS = {"address": _NO_ADDRESS, "listen": _NO_ADDRESS}
"""What people write there, and why it is none."""
_REGISTRATION_FIELDS = ("owner", "parent", "roles")
_PERMISSION_FIELDS = ("key_prefixes", "session_write")
_ROUTE_FIELDS = ("backend", "role", "fallback", "vip", "members")
_SECRET_FIELDS = ("grant",)
_EGRESS_FIELDS = ("name", "listen", "remote", "tls", "sni", "ca")
OWNERS = ("platform", "workload")


def whole_number(text: str) -> int | str:
    """The number in `text`; `text` itself when it is none, or none that a count could be."""
    return int(text) if text.isdecimal() and len(text) < MOST_DIGITS else text


class Reader:
    """Reads `local.workload_groups`. Places of the entries are kept in `places` for later checks."""

    def __init__(self, problems: Problems, read_roots: Callable[[Path], str] = Path.read_text) -> None:
        """`read_roots` gives the text of a file with certificates, or raises ValueError or OSError."""
        self._problems = problems
        self._read_roots = read_roots
        self.places: dict[str, Where] = {}
        """Entry (`workload_groups.api.routes.api`) to the place where it is written."""

    def groups(self, node: Node, replicas: Mapping[str, str]) -> tuple[Group, ...]:
        """The groups in `node`; `replicas` are overrides by group name. Broken groups are left out and noted."""
        entry = "workload_groups"
        found = [self._group(name, item, replicas.get(name)) for name, item in self._map(node, entry).items()]
        for name in replicas:
            if name not in self._map(node, entry):
                where = Where(file=f"override replicas.{name}")
                message = f"is not a workload group; {did_you_mean(name, self._map(node, entry))}"
                self._problems.add(where, name, message)
        return tuple(group for group in found if group is not None)

    def _group(self, name: str, node: Node, replicas: str | None) -> Group | None:
        entry = f"workload_groups.{name}"
        self._label(name, node.where, entry)
        fields = self._fields(node, entry, _GROUP_FIELDS)
        count = self._count(fields, node, entry, replicas)
        compose = self._text(fields, node, entry, "compose")
        backends = [
            self._backend(key, item, entry) for key, item in self._optional_map(fields, entry, "backends").items()
        ]
        routes = [self._route(key, item, entry) for key, item in self._optional_map(fields, entry, "routes").items()]
        secrets = [self._secret(key, item, entry) for key, item in self._optional_map(fields, entry, "secrets").items()]
        string, egress = self._egress(fields, entry)
        if count is None or compose is None or None in backends or None in routes:
            return None
        return Group(
            name=name,
            replicas=count,
            egress=egress,
            egress_string=string,
            compose=Path(compose),
            compose_env=self._compose_env(fields, entry),
            backends=self._served(fields, entry, [backend for backend in backends if backend is not None]),
            routes=tuple(route for route in routes if route is not None),
            secrets=tuple(secret for secret in secrets if secret is not None),
            calls=self._optional_list(fields, entry, "calls", 'a list of routes, such as ["worker"]'),
            mesh_addresses=self._texts(fields, entry, "mesh_addresses"),
        )

    def _count(self, fields: dict[str, Node], node: Node, entry: str, override: str | None) -> int | None:
        if override is not None:
            where = Where(file=f"override replicas.{entry.rpartition('.')[2]}")
            fields = {
                **fields,
                "replicas": Node(value=whole_number(override), where=where),
            }
        return self._integer(fields, node, entry, "replicas", least=1, most=MAX_REPLICAS)

    def _backend(self, name: str, node: Node, group: str) -> Backend | None:
        entry = f"{group}.backends.{name}"
        self._label(name, node.where, entry)
        fields = self._fields(node, entry, _BACKEND_FIELDS)
        port = self._integer(fields, node, entry, "port", least=1, most=65535)
        workload = self._name(fields, node, entry, "workload")
        if "registration" not in fields:
            message = 'lacks registration; add registration = { owner = "platform", parent = "' + name + '" }'
            self._problems.add(node.where, entry, message)
            return None
        where = fields["registration"]
        registration = self._fields(where, f"{entry}.registration", _REGISTRATION_FIELDS)
        owner = self._text(registration, where, f"{entry}.registration", "owner")
        parent = self._name(registration, where, f"{entry}.registration", "parent")
        if owner is not None and owner not in OWNERS:
            message = f'is {owner!r}, expected "platform" or "workload"; {did_you_mean(owner, OWNERS)}'
            self._problems.add(registration["owner"].where, f"{entry}.registration.owner", message)
        roles = self._roles(registration, f"{entry}.registration", owner)
        permissions = self._permissions(fields, entry)
        callers = self._optional_list(fields, entry, "callers", 'a list of groups, such as ["api"]')
        source = self._optional_text(fields, entry, "source_address")
        proxy_protocol = self._flag(fields, entry, "proxy_protocol")
        ingress = self._ingress(fields, entry)
        public = self._public(fields, entry)
        if port is None or workload is None or owner is None or parent is None:
            return None
        return Backend(
            name=name,
            port=port,
            workload=workload,
            owner=owner,
            parent=parent,
            roles=roles,
            permissions=permissions,
            callers=callers,
            source=source or INGRESS_SOURCE,
            proxy_protocol=proxy_protocol,
            ingress=ingress,
            public=public,
        )

    def _ingress(self, fields: dict[str, Node], entry: str) -> str:
        found = self._optional_text(fields, entry, "ingress")
        if found is None:
            return MTLS
        if found not in INGRESSES:
            message = f'is {found!r}, expected "mtls", "tls" or "off"; {did_you_mean(found, INGRESSES)}'
            self._problems.add(fields["ingress"].where, f"{entry}.ingress", message)
        return found

    def _public(self, fields: dict[str, Node], backend: str) -> Public | None:
        entry, node = f"{backend}.public", fields.get("public")
        if node is None or node.value is None:
            return None
        inner = self._fields(node, entry, _PUBLIC_FIELDS, _NO_PUBLIC_FIELDS)
        port = self._integer(inner, node, entry, "port", least=1, most=65535)
        if "sans" not in inner:
            self._problems.add(node.where, entry, 'lacks sans; add the names that clients use: sans = ["gateway"]')
        sans = self._optional_list(inner, entry, "sans", 'a list of names, such as ["web.example.com"]')
        alpn = self._optional_list(inner, entry, "alpn", f'a list, such as ["{HTTP1}"]')
        wildcard = self._flag(inner, entry, "wildcard")
        return Public(
            # Without one, which is said already, no other entry is blamed for this one's port.
            port=port or 0,
            sans=tuple(normal(name) for name in sans or ()),
            wildcard=wildcard,
            alpn=(HTTP1,) if alpn is None else alpn,
        )

    def _optional_list(self, fields: dict[str, Node], entry: str, name: str, expected: str) -> tuple[str, ...] | None:
        """The list called `name`; None where it is absent or null, and where it is no list, which is refused."""
        node = fields.get(name)
        if node is None or node.value is None:
            return None
        found = self._list(node, f"{entry}.{name}", expected)
        return found if isinstance(node.value, tuple) else None

    def _flag(self, fields: dict[str, Node], entry: str, name: str) -> bool:
        """The optional true or false called `name`; false where it is absent or null."""
        node = fields.get(name)
        if node is None or node.value is None:
            return False
        if not isinstance(node.value, bool | Unknown):
            self._problems.add(node.where, f"{entry}.{name}", f"is {_show(node)}, expected true or false")
        return node.value is True

    def _roles(self, registration: dict[str, Node], entry: str, owner: str | None) -> tuple[str, ...]:
        node = registration.get("roles")
        if node is None or node.value is None:
            return ROLES if owner == "workload" else ()
        if owner == "platform":
            message = 'is given, but the platform sets no roles; remove it, or use owner = "workload"'
            self._problems.add(node.where, f"{entry}.roles", message)
        roles = self._list(node, f"{entry}.roles", 'a list of roles, such as ["master", "replica"]')
        for role in roles:
            self._label(role, node.where, f"{entry}.roles")
        return tuple(dict.fromkeys(roles))

    def _permissions(self, fields: dict[str, Node], backend: str) -> Permissions:
        entry = f"{backend}.consul_permissions"
        node = fields.get("consul_permissions")
        if node is None or node.value is None:
            return Permissions()
        inner = self._fields(node, entry, _PERMISSION_FIELDS)
        write = inner.get("session_write", Node(value=False, where=node.where))
        if not isinstance(write.value, bool | Unknown):
            self._problems.add(write.where, f"{entry}.session_write", f"is {_show(write)}, expected true or false")
        prefixes = inner.get("key_prefixes", Node(value=(), where=node.where))
        texts = self._list(prefixes, f"{entry}.key_prefixes", 'a list of key prefixes, such as ["service/name"]')
        return Permissions(key_prefixes=texts, session_write=write.value is True)

    def _list(self, node: Node, entry: str, expected: str) -> tuple[str, ...]:
        """The texts of a list; what is no text, or nothing but slashes, is noted and left out. One text alone is no
        list: Terraform's own types would refuse it too."""
        if not isinstance(node.value, tuple):
            if not isinstance(node.value, Unknown):
                self._problems.add(node.where, entry, f"is {_show(node)}, expected {expected}")
            return ()
        texts: list[str] = []
        for item in node.value:
            if isinstance(item.value, str) and item.value.strip("/"):
                texts.append(item.value)
            elif not isinstance(item.value, Unknown):
                self._problems.add(item.where, entry, f"holds {_show(item)}, expected {expected}")
        return tuple(texts)

    def _route(self, name: str, node: Node, group: str) -> Route | None:
        entry = f"{group}.routes.{name}"
        self._label(name, node.where, entry)
        fields = self._fields(node, entry, _ROUTE_FIELDS)
        backend = self._text(fields, node, entry, "backend")
        role = self._optional_text(fields, entry, "role")
        if role is not None and (why := why_no_label(role)) is not None:
            self._problems.add(fields["role"].where, f"{entry}.role", why)
            role = None
        fallback = self._optional_text(fields, entry, "fallback")
        vip = self._optional_text(fields, entry, "vip")
        members = self._flag(fields, entry, "members")
        if backend is None:
            return None
        return Route(name=name, backend=backend, role=role, fallback=fallback, vip=vip, members=members)

    def _secret(self, name: str, node: Node, group: str) -> WorkloadSecret | None:
        entry = f"{group}.secrets.{name}"
        # The name becomes that of a file.
        self._label(name, node.where, entry)
        fields = self._fields(node, entry, _SECRET_FIELDS)
        grant = fields.get("grant", Node(value=(), where=node.where))
        granted = self._list(grant, f"{entry}.grant", 'a list of groups, such as ["api"]')
        return WorkloadSecret(name=name, grant=granted) if isinstance(grant.value, tuple) else None

    def _served(self, fields: dict[str, Node], entry: str, backends: list[Backend]) -> tuple[Backend, ...]:
        """`backends`, reached as the annotation's string says where there is one."""
        node = fields.get("servicemesh_ingress")
        if node is None or node.value is None or isinstance(node.value, Unknown):
            return tuple(backends)
        try:
            if not isinstance(node.value, str):
                raise StringError(f"is {_show(node)}, expected one text in quotes")
            found = servicemesh.ingress(node.value)
            written = [it.name for it in backends if f"{entry}.backends.{it.name}.ingress" in self.places]
            if written:
                raise StringError(f"stands beside the field ingress of {', '.join(written)}; expected one of the two")
            ports = [backend.port for backend in backends]
            for place, rule in zip(servicemesh.entries(node.value), found.rules, strict=False):
                if rule.port not in ports:
                    raise StringError(f"{place} has port {rule.port}, on which no backend of the group listens")
        except StringError as error:
            self._problems.add(node.where, f"{entry}.servicemesh_ingress", str(error))
            return tuple(backends)
        return tuple(replace(backend, ingress=found.mode(backend.port)) for backend in backends)

    def _egress(self, fields: dict[str, Node], entry: str) -> tuple[str | None, tuple[EgressEntry, ...]]:
        """The annotation's string where there is one, and the egresses; those that are broken are left out."""
        node, string = fields.get("egress"), fields.get("servicemesh_egress")
        listed = node is not None and node.value is not None
        if string is None or string.value is None:
            return None, self._egress_list(node, f"{entry}.egress") if node is not None and listed else ()
        place = f"{entry}.servicemesh_egress"
        if listed:
            self._problems.add(string.where, place, "stands beside egress; expected one of the two, remove the other")
        elif isinstance(string.value, str):
            try:
                found = servicemesh.egress(string.value)
            except StringError as error:
                self._problems.add(string.where, place, str(error))
            else:
                return string.value, found
        elif not isinstance(string.value, Unknown):
            self._problems.add(string.where, place, f"is {_show(string)}, expected one text in quotes")
        return None, ()

    def _egress_list(self, node: Node, entry: str) -> tuple[EgressEntry, ...]:
        if not isinstance(node.value, tuple):
            if not isinstance(node.value, Unknown):
                expected = 'a list of maps, such as [{ name = "db", listen = "127.137.0.1:8081", remote = "db:5432" }]'
                self._problems.add(node.where, entry, f"is {_show(node)}, expected {expected}")
            return ()
        found = [self._egress_entry(item, f"{entry}[{index}]") for index, item in enumerate(node.value)]
        # Places go by position: with one left out, those of the others would be wrong.
        return tuple(it for it in found if it is not None) if None not in found else ()

    def _egress_entry(self, node: Node, entry: str) -> EgressEntry | None:
        fields = self._fields(node, entry, _EGRESS_FIELDS)
        name, listen, remote = (self._text(fields, node, entry, each) for each in ("name", "listen", "remote"))
        tls, sni, ca = (self._optional_text(fields, entry, each) for each in ("tls", "sni", "ca"))
        pinned = self._roots(Path(ca), fields["ca"].where, f"{entry}.ca") if ca is not None else None
        if name is None or listen is None or remote is None or (ca is not None and pinned is None):
            return None
        return EgressEntry(name=name, listen=listen, remote=remote, tls=tls or MESH, sni=sni, ca=pinned)

    def _roots(self, path: Path, where: Where, entry: str) -> str | None:
        try:
            return roots_of(self._read_roots(path))
        except EgressError as error:
            self._problems.add(where, entry, f"is {str(path)!r}, which {error}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            message = f'is {str(path)!r}, which cannot be read ({reason}); write "${{path.module}}/…" and a file in PEM'
            self._problems.add(where, entry, message)
        return None

    def _compose_env(self, fields: dict[str, Node], entry: str) -> dict[str, str]:
        found = self._texts(fields, entry, "compose_env")
        for name in found:
            where = self.places.get(f"{entry}.compose_env.{name}", fields["compose_env"].where)
            if not VARIABLE.fullmatch(name):
                message = "is no name for an environment variable; use letters, digits and '_'"
                self._problems.add(where, f"{entry}.compose_env.{name}", message)
            elif name.startswith(("MESH_", "mesh_")):
                message = "belongs to the mesh, which sets all MESH_ variables (exec.sh: mesh_); choose another name"
                self._problems.add(where, f"{entry}.compose_env.{name}", message)
            elif (obeyed := why_obeyed(name)) is not None:
                message = f"{obeyed}, so it could not be held against the manifest; choose another name"
                self._problems.add(where, f"{entry}.compose_env.{name}", message)
            if "\\" in found[name]:
                message = "has a backslash, which dstack would corrupt; encode the value, for example base64url"
                self._problems.add(where, f"{entry}.compose_env.{name}", message)
        return found

    def _texts(self, fields: dict[str, Node], entry: str, name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, item in self._optional_map(fields, entry, name).items():
            self.places[f"{entry}.{name}.{key}"] = item.where
            if isinstance(item.value, str):
                found[key] = item.value
            elif not isinstance(item.value, Unknown):
                message = f"is {_show(item)}, expected text; put it in quotes"
                self._problems.add(item.where, f"{entry}.{name}.{key}", message)
        return found

    def _fields(
        self, node: Node, entry: str, known: tuple[str, ...], why_none: Mapping[str, str] = {}
    ) -> dict[str, Node]:
        self.places[entry] = node.where
        found = self._map(node, entry)
        for name, item in found.items():
            self.places.setdefault(f"{entry}.{name}", item.where)
            if name not in known:
                message = why_none.get(name) or f"is an unknown field; {did_you_mean(name, known)}"
                self._problems.add(item.where, f"{entry}.{name}", message)
        return {name: item for name, item in found.items() if name in known}

    def _map(self, node: Node, entry: str) -> dict[str, Node]:
        if isinstance(node.value, dict):
            return node.value
        if not isinstance(node.value, Unknown):
            self._problems.add(node.where, entry, f"is {_show(node)}, expected a map {{ … }}")
        return {}

    def _optional_map(self, fields: dict[str, Node], entry: str, name: str) -> dict[str, Node]:
        node = fields.get(name)
        return {} if node is None or node.value is None else self._map(node, f"{entry}.{name}")

    def _text(self, fields: dict[str, Node], parent: Node, entry: str, name: str) -> str | None:
        node = fields.get(name)
        if node is None:
            if not isinstance(parent.value, Unknown):
                self._problems.add(parent.where, entry, f"lacks {name}; add it")
            return None
        if isinstance(node.value, str) and node.value:
            return node.value
        if not isinstance(node.value, Unknown):
            self._problems.add(node.where, f"{entry}.{name}", f"is {_show(node)}, expected one text in quotes")
        return None

    def _optional_text(self, fields: dict[str, Node], entry: str, name: str) -> str | None:
        node = fields.get(name)
        return None if node is None or node.value is None else self._text(fields, node, entry, name)

    def _name(self, fields: dict[str, Node], parent: Node, entry: str, name: str) -> str | None:
        text = self._text(fields, parent, entry, name)
        if text is not None:
            self._label(text, fields[name].where, f"{entry}.{name}")
        return text

    def _label(self, name: str, where: Where, entry: str) -> None:
        if (why := why_no_label(name)) is not None:
            self._problems.add(where, entry, why)

    def _integer(
        self, fields: dict[str, Node], parent: Node, entry: str, name: str, *, least: int, most: int
    ) -> int | None:
        node = fields.get(name)
        if node is None:
            if not isinstance(parent.value, Unknown):
                self._problems.add(parent.where, entry, f"lacks {name}; add it")
            return None
        value = int(node.value) if isinstance(node.value, float) and node.value.is_integer() else node.value
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        if not isinstance(value, Unknown):
            message = f"is {_show(node)}, expected a whole number from {least} to {most}"
            self._problems.add(node.where, f"{entry}.{name}", message)
        return None


def _show(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a map"
    if isinstance(node.value, tuple):
        return "a list"
    if isinstance(node.value, bool):
        return str(node.value).lower()
    return "null" if node.value is None else repr(node.value)
