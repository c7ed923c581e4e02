#!/bin/sh
# The wrapper of an app container's command: waits until the mesh is ready, refuses variables that are not as the
# cluster's owner signed them, makes the mesh's names resolve in this container, then becomes the command.
#
#   entrypoint: ["/run/mesh/exec.sh"]
#   command: ["/app/server", "--flag"]
#
# MESH_WAIT: seconds to wait at most, 120 by default.
# Exit codes of its own: 64 wrong use, 75 the mesh was not ready in time, 78 a variable is not as it was signed; else the
# command's (127: no such command).
#
# Runs in whatever shell an image has (dash, busybox, bash --posix), so it is POSIX sh, and on the way to a mesh that is
# ready it uses nothing but builtins; `sleep` only while it waits. Its variables begin with `mesh_`: a name that the
# container's environment also has would be passed on changed.

mesh_run=/run/mesh
mesh_begin='# cvm-mesh begin'
mesh_end='# cvm-mesh end'
mesh_newline='
'

mesh_say() {
    printf 'exec.sh: %s\n' "$*" >&2
}

# Sets mesh_reasons to what the sidecar still waits for, on one line.
mesh_read_reasons() {
    mesh_reasons=
    [ -r "$mesh_run/reasons" ] || return 0
    while IFS= read -r mesh_line || [ -n "$mesh_line" ]; do
        mesh_reasons="$mesh_reasons${mesh_reasons:+; }$mesh_line"
    done <"$mesh_run/reasons"
}

# Not every sleep takes fractions; one second is what POSIX has.
mesh_pause() {
    if sleep 0.1 2>/dev/null; then
        mesh_tenths=$((mesh_tenths + 1))
    else
        sleep 1
        mesh_tenths=$((mesh_tenths + 10))
    fi
}

mesh_give_up() {
    mesh_read_reasons
    mesh_say "$1: ${mesh_reasons:-"the sidecar has not written $mesh_run/ready; is its container running, and is its mesh folder mounted at $mesh_run?"}"
    exit 75
}

mesh_wait() {
    mesh_limit=${MESH_WAIT:-120}
    case $mesh_limit in
    *[!0-9]* | ???????*)
        mesh_say "MESH_WAIT is '$mesh_limit', expected a whole number of seconds below 1000000, such as 120"
        exit 64
        ;;
    esac
    mesh_tenths=0
    mesh_told=
    while [ ! -e "$mesh_run/ready" ]; do
        [ $((mesh_tenths / 10)) -lt "$mesh_limit" ] || mesh_give_up "the mesh was not ready after $mesh_limit s"
        command -v sleep >/dev/null 2>&1 || mesh_give_up \
            "the mesh is not ready, and this image has no sleep to wait with (start it after the sidecar is healthy: depends_on, condition: service_healthy)"
        if [ "$mesh_tenths" -ge 100 ] && [ -z "$mesh_told" ]; then
            mesh_told=1
            mesh_read_reasons
            mesh_say "waiting for the mesh, at most $mesh_limit s${mesh_reasons:+: $mesh_reasons}"
        fi
        mesh_pause
    done
}

# Adds mesh_name to mesh_differing where this container has it with another value than mesh_value. A container without it
# is fine: which variables one has is in the measured compose file. A value may be secret, so none is ever said.
mesh_compare() {
    case $mesh_name in
    '') return 0 ;;
    [0-9]* | *[!A-Za-z0-9_]*)
        mesh_say "$mesh_run/environment has a line that names no variable, so the command is not started; mount the sidecar's own folder at $mesh_run"
        exit 78
        ;;
    esac
    eval "mesh_given=\${$mesh_name+given} mesh_found=\${$mesh_name-}"
    [ -z "$mesh_given" ] || [ "$mesh_found" = "$mesh_value" ] || mesh_differing="$mesh_differing${mesh_differing:+, }$mesh_name"
}

# Whoever runs the host sets the environment, and not the manifest, from which the sidecar wrote the file: NAME=value,
# and a line that begins with a space goes on with the value.
mesh_check_environment() {
    mesh_differing=
    mesh_name=
    mesh_value=
    if [ ! -r "$mesh_run/environment" ]; then
        mesh_say "$mesh_run/environment is missing or cannot be read, so what the manifest says of this container's variables is not known and the command is not started; see problems in the sidecar's status"
        exit 78
    fi
    while IFS= read -r mesh_line || [ -n "$mesh_line" ]; do
        case $mesh_line in
        ' '*) mesh_value="$mesh_value$mesh_newline${mesh_line# }" ;;
        *)
            mesh_compare
            mesh_name=${mesh_line%%=*}
            mesh_value=${mesh_line#*=}
            ;;
        esac
    done <"$mesh_run/environment"
    mesh_compare
    [ -n "$mesh_differing" ] || return 0
    mesh_say "not as the manifest has it for this group: $mesh_differing; the command is not started. Give this CVM the value that was signed (compose_env in cluster.tf), or set the new one: ./mesh generate, sign, set"
    exit 78
}

# Sets mesh_block to the mesh's lines of the file $1, markers included, and mesh_rest to all other lines. No file is an
# empty one; one that cannot be read is a failure, as what it holds would be lost.
mesh_split() {
    mesh_block=
    mesh_rest=
    mesh_open=
    [ -e "$1" ] || return 0
    [ -r "$1" ] || return 1
    while IFS= read -r mesh_line || [ -n "$mesh_line" ]; do
        if [ -z "$mesh_open" ] && [ "$mesh_line" = "$mesh_begin" ]; then
            mesh_open="$mesh_line$mesh_newline"
        elif [ -z "$mesh_open" ]; then
            mesh_rest="$mesh_rest$mesh_line$mesh_newline"
        else
            mesh_open="$mesh_open$mesh_line$mesh_newline"
            if [ "$mesh_line" = "$mesh_end" ]; then
                mesh_block=$mesh_open
                mesh_open=
            fi
        fi
    done <"$1"
    # A block without its end may hold lines that are not ours: keep all but the marker.
    mesh_rest="$mesh_rest${mesh_open#"$mesh_begin$mesh_newline"}"
}

# Writes $2 into the file $1, in place: a file that is a mount of its own, as in every container, cannot be renamed over.
# When that fails halfway, as on a full disk, the old content $3 goes back.
mesh_put() {
    { printf '%s' "$2" >"$1"; } 2>/dev/null && return 0
    [ -z "$3" ] || { printf '%s' "$3" >"$1"; } 2>/dev/null
    return 1
}

# The mesh's lines go first: where the machine has the same name too, the first line wins.
mesh_install_hosts() {
    mesh_split "$mesh_run/hosts" || return 1
    mesh_wanted=$mesh_block
    mesh_split /etc/hosts || return 1
    [ "$mesh_block" != "$mesh_wanted" ] || return 0
    mesh_put /etc/hosts "$mesh_wanted$mesh_rest" "$mesh_block$mesh_rest"
}

mesh_install_resolv_conf() {
    mesh_split "$mesh_run/resolv.conf" || return 1
    mesh_wanted=$mesh_rest
    mesh_split /etc/resolv.conf || return 1
    [ -n "$mesh_wanted" ] && [ "$mesh_rest" != "$mesh_wanted" ] || return 0
    mesh_put /etc/resolv.conf "$mesh_wanted" "$mesh_rest"
}

mesh_install() {
    mesh_failed=
    mesh_install_hosts || mesh_failed=/etc/hosts
    mesh_install_resolv_conf || mesh_failed="$mesh_failed${mesh_failed:+ and }/etc/resolv.conf"
    [ -z "$mesh_failed" ] || mesh_say \
        "warning: cannot write $mesh_failed, so names of the mesh may not resolve here; start this container as root with a writable /etc, or mount the mesh folder's resolv.conf over /etc/resolv.conf, read-only"
}

if [ $# -eq 0 ]; then
    mesh_say "no command; usage: $0 COMMAND [ARGUMENT...]"
    exit 64
fi
# The first process of a container ignores signals that it has no handler for: without these, a stop would wait in vain.
# What is caught here is back to normal in the command (exec does that).
trap 'exit 143' TERM
trap 'exit 130' INT
mesh_wait
mesh_check_environment
mesh_install
exec "$@"
