#!/usr/bin/env bash
# Install what the tests in tests/slurm need, where that is possible; elsewhere they are skipped.
# The packages' own daemons are not started: the tests start theirs in namespaces.
set -euo pipefail

packages=(slurmctld slurmd slurm-client munge iproute2 util-linux)
if dpkg --status "${packages[@]}" >/dev/null 2>&1; then
    exit 0
fi
if [[ $(id -u) != 0 || ! -e /etc/debian_version ]]; then
    echo "The tests of SLURM jobs will be skipped: installing SLURM needs root and Debian"
    exit 0
fi
# Debian asks this file whether it may start daemons.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}"; } \
    >/dev/null; then
    echo "The tests of SLURM jobs will be skipped: its packages could not be installed"
fi
