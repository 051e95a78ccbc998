#!/usr/bin/env bash
# Runs every check from a bare checkout: ruff, mypy, then the tests, which must cover all of the
# package, once for each way of installing it, and a short form of the benchmarks. What is needed
# for that is installed into .venv, which is kept for the next run.
#
#   tests/run.sh -k parser                 some of the tests
#   PYTHON=python3.12 tests/run.sh         with another interpreter
#   SSEQBRIDGE_NO_SKIPS=1 tests/run.sh     a test that is skipped fails the run
#   SEED=123 tests/run.sh                  the tests in the order of an earlier run, which has printed its seed
#   tests/run.sh --busy                    beside four processes that do nothing but compute
set -euo pipefail
cd "$(dirname "$0")/.."

is_busy=false
if [ "${1:-}" = --busy ]; then
    is_busy=true
    shift
fi

PYTHON=${PYTHON:-python3}

# Programs that tests start. Where they cannot be installed, those tests are skipped and say so.
DEBIAN_PACKAGES=(chromium chromium-driver libnginx-mod-nchan nginx-light redis-server uwsgi-core uwsgi-plugin-python3)
command -v npm >/dev/null || DEBIAN_PACKAGES+=(nodejs npm)
# Debian's own Python comes without what makes environments.
can_make_environments() { "$PYTHON" -c 'import ensurepip' 2>/dev/null; }
can_make_environments || DEBIAN_PACKAGES+=(python3-venv)

install_debian_packages() {
    local package missing=()
    for package in "${DEBIAN_PACKAGES[@]}"; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "not installed: ${missing[*]}; the tests that need them are skipped" >&2
        return 0
    fi
    # (Policy: nothing that is installed here is started as a service.)
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    { apt-get update -qq && apt-get install -qq --yes --no-install-recommends "${missing[@]}"; } >/dev/null ||
        echo "apt-get could not install ${missing[*]}; the tests that need them are skipped" >&2
}

# What an environment was made from. Another interpreter, place or setup.cfg makes a new one.
describe_environment() {
    "$PYTHON" -c 'import sys; print(sys.version, sys.base_prefix)'
    pwd
    cat setup.py setup.cfg
}

make_environment() {
    local described
    described=$(describe_environment)
    if [ -x .venv/bin/python ] && [ "$(cat .venv/made-from 2>/dev/null)" = "$described" ]; then
        return 0
    fi
    rm -rf .venv
    "$PYTHON" -m venv .venv
    # Editable, so that the files that are measured and type-checked are those of the checkout. What is never imported
    # is not compiled.
    .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --editable '.[test,bench]'
    printf '%s\n' "$described" >.venv/made-from
}

# What pages read event streams with; the tests in a browser serve it.
install_page_modules() {
    [ -d .venv/npm/node_modules ] ||
        npm install --prefix .venv/npm --no-save --no-audit --no-fund --ignore-scripts --silent \
            @microsoft/fetch-event-source@2.0.1 || echo "npm could not install it; tests that need it are skipped" >&2
}

# Side by side: neither waits for the other's downloads.
install_debian_packages &
packages=$!
can_make_environments || wait "$packages"
make_environment
wait "$packages"
install_page_modules
.venv/bin/ruff check --quiet .

# All tests with the fast parts, measured but for the heavy ones; the same as with a plain install, but for what has
# nothing to do with it; and those of requests and their answers with httpx's transport instead of the library's own.
# All side by side, since tests wait more than they compute.
OF_REQUESTS=(abort answers async bridge chaos client content_encoding edges errors hostile interop lifecycle merge nchan)
OF_REQUESTS+=(pool reconnecting request tee web_platform)
WITH_PROGRAMS=(browser chaos cli examples_chat fork gevent interop lifecycle public quickstart races readme relay)
WITH_PROGRAMS+=(relay_frameworks relay_servers runtime soak testing_server)
WITH_REDIS=(examples_celery examples_reload resume resume_redis)
# What is the same whatever the loop and the JSON decoder are.
ONCE=(browser cli content_encoding encoder examples_celery examples_chat examples_reload framing fuzz heads layout)
ONCE+=(machines parser public quickstart readme reconnection resume_redis soak)

files_of() {
    local names=("${@/#/tests/test_}")
    printf '%s\n' "${names[@]/%/.py}"
}
mapfile -t of_requests < <(files_of "${OF_REQUESTS[@]}")
mapfile -t with_programs < <(files_of "${WITH_PROGRAMS[@]}")
mapfile -t with_redis < <(files_of "${WITH_REDIS[@]}")
mapfile -t once < <(files_of "${ONCE[@]}")
mapfile -t heavy < <(grep --files-with-matches --fixed-strings pytest.mark.heavy tests/test_*.py)
# Those that are run twice.
run_twice() { printf '%s\n' "$@" | grep --invert-match --line-regexp --fixed-strings --file=<(printf '%s\n' "${once[@]}"); }
mapfile -t programs_again < <(run_twice "${with_programs[@]}")
mapfile -t redis_again < <(run_twice "${with_redis[@]}")

# Of pytest-randomly: all runs have the same.
seed=${SEED:-$RANDOM}
export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} --randomly-seed=$seed"
echo "random order: SEED=$seed"

asked_for=all
[ "$#" -eq 0 ] || asked_for=some
run_pytest() {
    local status=0
    "$@" || status=$?
    # 5: none of the tests that were asked for is among these.
    [ "$status" -eq 0 ] || [ "$status $asked_for" = "5 some" ]
}
run_measured() { run_pytest .venv/bin/coverage run --parallel-mode -m pytest --quiet "$@"; }
run_plain() { SSEQBRIDGE_WITHOUT=uvloop,msgspec run_pytest .venv/bin/python -m pytest --quiet "$@"; }
run_on_httpx() { SSEQBRIDGE_WITHOUT=transport run_pytest .venv/bin/python -m pytest --quiet "$@"; }

check_types() {
    local version own
    .venv/bin/mypy --strict
    own=$(.venv/bin/python -c 'import sys; print("{}.{}".format(*sys.version_info))')
    for version in 3.10 3.11 3.12 3.13 3.14; do
        # Its own has been checked with all the rest.
        [ "$version" = "$own" ] || .venv/bin/mypy --strict --python-version "$version" sseqbridge
    done
}

declare -A running=()
# Also on failure, SIGINT and SIGTERM.
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
# Ends with the script, also where that is killed.
compute() {
    while kill -0 $$ 2>/dev/null; do
        for ((i = 0; i < 100000; i++)); do :; done
    done
}
if $is_busy; then
    for _ in 1 2 3 4; do
        compute &
    done
fi
start() {
    local name=$1
    shift
    "$@" >".venv/$name.txt" 2>&1 &
    running[$name]=$!
}

# One after the other in each, so that all take about as long.
run_with_programs_then_types() {
    run_measured -m "not heavy" "${with_programs[@]}"
    check_types
}
run_with_redis_then_programs_again() {
    run_measured -m "not heavy" "${with_redis[@]}"
    run_plain "${programs_again[@]}"
}
run_on_httpx_then_redis_again() {
    run_on_httpx "${of_requests[@]}"
    run_plain "${redis_again[@]}"
}
run_plain_then_heavy() {
    run_plain "${elsewhere[@]}" "${once[@]/#/--ignore=}"
    run_pytest .venv/bin/python -m pytest --quiet -m heavy "${heavy[@]}"
}

.venv/bin/coverage erase
if [ "$#" -gt 0 ]; then
    start types check_types
    start measured run_measured "$@"
    start plain run_plain "$@"
    start on-httpx run_on_httpx "$@"
else
    elsewhere=("${with_programs[@]/#/--ignore=}" "${with_redis[@]/#/--ignore=}")
    start measured run_measured -m "not heavy" "${elsewhere[@]}"
    start with-programs-then-types run_with_programs_then_types
    start with-redis-then-programs-again run_with_redis_then_programs_again
    start on-httpx-then-redis-again run_on_httpx_then_redis_again
    start plain-then-heavy run_plain_then_heavy
fi
failed=0
join() {
    local name
    for name in "${!running[@]}"; do
        if wait "${running[$name]}"; then
            printf '%s: %s\n' "$name" "$(tail -n 1 ".venv/$name.txt")"
        else
            failed=1
            printf '\n%s failed:\n' "$name"
            cat ".venv/$name.txt"
        fi
    done
}
join
# Of a part of the tests nobody expects that it covers everything.
if [ "$#" -eq 0 ]; then
    .venv/bin/coverage combine --quiet
    .venv/bin/coverage report --fail-under=100 || failed=1
    # For a minute, where asked for: beside what follows, whose figures of a moment mean nothing anyway.
    running=()
    [ -z "${SSEQBRIDGE_FUZZ:-}" ] || start fuzz .venv/bin/python -m tests.fuzz 1000000000 --target parser --seconds 60
    # That the benchmarks run, and every client gets what was sent.
    .venv/bin/python -m tests.bench --quick --json .venv/bench.json || failed=1
    .venv/bin/python -m tests.bench.resume --quick || failed=1
    join
fi
exit "$failed"
