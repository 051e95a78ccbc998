#!/usr/bin/env bash
# Runs every check from a bare checkout: makes .venv, installs the extra "dev" there, and runs the sessions of
# tests/noxfile.py. Arguments are passed to pytest; sessions without tests are then skipped.
#
#   tests/run.sh -k parser                   some of the tests
#   tests/run.sh --randomly-seed=123         the tests in the order of an earlier run; a failed run prints its seed
#   tests/run.sh --no-apt                    installs no Debian packages; tests that need them are skipped
#   tests/run.sh --busy                      with four processes that only compute
#   PYTHON=python3.12 tests/run.sh           with another interpreter
#   CI=true tests/run.sh                     a skipped test fails the run
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
# Programs that tests start.
DEBIAN_PACKAGES=(apache2-bin caddy chromium chromium-driver curl haproxy libnginx-mod-nchan nginx-light redis-server
    uwsgi-core uwsgi-plugin-python3)
# Debian has it from version 13 on.
apt-cache show valkey-server >/dev/null 2>&1 && DEBIAN_PACKAGES+=(valkey-server)
command -v npm >/dev/null || DEBIAN_PACKAGES+=(nodejs npm)
# A module that pages read event streams with, TypeScript, a mock of providers' APIs, and providers' SDKs.
NPM_PACKAGES=(@microsoft/fetch-event-source@2.0.1 typescript@5 @copilotkit/aimock@1 openai@6 ai@6 @ai-sdk/openai-compatible@2)
# Debian's Python lacks the module that venv needs.
"$PYTHON" -c 'import ensurepip' 2>/dev/null || DEBIAN_PACKAGES+=(python3-venv)
[ "${CI:-}" != true ] || export SSEQBRIDGE_NO_SKIPS=1

uses_apt=true is_busy=false
while [ "${1:-}" = --no-apt ] || [ "${1:-}" = --busy ]; do
    if [ "$1" = --busy ]; then is_busy=true; else uses_apt=false; fi
    shift
done
[ "${1:-}" != -- ] || shift

install_debian_packages() {
    local package missing=()
    for package in "${DEBIAN_PACKAGES[@]}"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if ! $uses_apt || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "not installed: ${missing[*]}; the tests that need them are skipped" >&2
        return 0
    fi
    echo "apt-get installs ${missing[*]} (not with --no-apt)"
    # RUNLEVEL=1: do not start installed programs as services.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends "${missing[@]}"; } >/dev/null ||
        echo "apt-get could not install ${missing[*]}; the tests that need them are skipped" >&2
}

# A change of the interpreter, directory, version or setup.cfg makes a new environment.
make_environment() {
    local made_from
    made_from=$("$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)' && pwd && cat setup.py setup.cfg &&
        grep '^__version__' sseqbridge/__init__.py)
    if [ ! -x .venv/bin/python ] || [ "$(cat .venv/made-from 2>/dev/null)" != "$made_from" ]; then
        rm -rf .venv
        "$PYTHON" -m venv .venv
        # --no-compile: only a few of the modules are imported, and compiled then.
        .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --editable '.[dev]'
        printf '%s\n' "$made_from" >.venv/made-from
    fi
    # npm removes what is not in the list, so that all are installed at once.
    if [ "$(cat .venv/npm/made-from 2>/dev/null)" != "${NPM_PACKAGES[*]}" ]; then
        npm install --prefix .venv/npm --no-save --no-audit --no-fund --ignore-scripts --silent "${NPM_PACKAGES[@]}" &&
            printf '%s\n' "${NPM_PACKAGES[*]}" >.venv/npm/made-from ||
            echo "npm could not install ${NPM_PACKAGES[*]}; tests that need them are skipped" >&2
    fi
}

burners=()
# tests/conftest.py adds the failed tests of each session, whose output is far above that of the last session.
SSEQBRIDGE_FAILURES=$(mktemp)
export SSEQBRIDGE_FAILURES
finish() {
    [ "${#burners[@]}" -eq 0 ] || kill "${burners[@]}"
    if [ -s "$SSEQBRIDGE_FAILURES" ]; then
        echo "Failed tests:"
        if [ "$(wc -l <"$SSEQBRIDGE_FAILURES")" -le 60 ]; then
            cat "$SSEQBRIDGE_FAILURES"
        else
            grep -v '^  ' "$SSEQBRIDGE_FAILURES" | sed -n 1,60p
        fi
    fi
    rm -f "$SSEQBRIDGE_FAILURES"
}
trap finish EXIT
burn() {
    # Ends with the script, also if the script is killed.
    while kill -0 $$ 2>/dev/null; do
        for ((i = 0; i < 100000; i++)); do :; done
    done
}

install_debian_packages
make_environment
if $is_busy; then
    for _ in 1 2 3 4; do
        burn &
        burners+=($!)
    done
fi
sessions=()
[ "$#" -eq 0 ] || sessions=(--session tests plain httpx_transport)
.venv/bin/nox -f tests/noxfile.py ${sessions[@]+"${sessions[@]}"} -- "$@"
