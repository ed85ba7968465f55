# Sourced by start, test and check: finds a Python, keeps .venv in order, installs what is missing.
# Guarantee: after `prepare_environment` "$VENV/bin/python" is a supported Python in which the project
# is installed as setup.cfg and pyproject.toml say now; when that is so already, nothing is touched.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
STAMP="$VENV/installed-for"

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "$(basename "$0"): $*"
    exit 1
}

# Prints the version, "3.11" or "3.12", of the interpreter $1; fails when it is another or does not run.
# plyvel, which binds LevelDB, has no wheels for later ones.
supported_version() {
    local version
    version="$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || return 1
    case "$version" in
        3.11 | 3.12) printf '%s\n' "$version" ;;
        *) return 1 ;;
    esac
}

find_python() {
    local candidate found=none
    for candidate in python3 python3.11 python3.12; do
        if supported_version "$candidate" >/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    command -v python3 >/dev/null && found="$(python3 --version 2>&1 || true)"
    fail "Perdure needs Python 3.11 or 3.12 as python3, python3.11 or python3.12; found: $found." \
        "Install one of them and start again."
}

# Installs the Debian package $1 because of $2, as root or through sudo, or says what to do by hand.
install_debian_package() {
    local package="$1" reason="$2" as_root=()
    if ! command -v apt-get >/dev/null; then
        fail "$reason; there is no apt-get here, so install $package with this system's package manager."
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            fail "$reason; run 'apt-get install $package' as root and start again."
        fi
        as_root=(sudo)
        # Without a terminal nobody can type a password: fail with a sentence instead of waiting.
        [ -t 0 ] || as_root=(sudo -n)
    fi
    say "Installing the Debian package $package ($reason) ..."
    local install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
        apt-get install --yes --quiet=2 --no-install-recommends "$package")
    # A fresh machine has no package lists, an old one has stale ones: both show as a failed first try.
    "${install[@]}" >/dev/null 2>&1 ||
        { "${as_root[@]}" apt-get update --quiet=2 >&2 && "${install[@]}" >/dev/null; } ||
        fail "$reason; 'apt-get install $package' did not work (see above): install it and start again."
}

create_environment() {
    local python version
    python="$(find_python)"
    version="$(supported_version "$python")"
    # Debian ships Python without ensurepip, which venv needs; the package of the same version has it.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        install_debian_package "python$version-venv" "Python $version lacks its venv module"
    fi
    say "Making a virtual environment in .venv with Python $version ..."
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || {
        rm -rf "$VENV"
        fail "'$python -m venv' did not work (see above); correct that and start again."
    }
}

# What an installation depends on: the two files, the folder (an editable install points to it) and
# the interpreter.
fingerprint() {
    {
        printf '%s\n' "$ROOT"
        "$VENV/bin/python" -c 'import sys; print(sys.version)'
        cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml"
    } | sha256sum | cut -d ' ' -f 1
}

# prepare_environment        what running Perdure needs
# prepare_environment dev    also what its tests and checks need
prepare_environment() {
    local extra="${1:-}" wanted installed
    # An interrupted start leaves an environment without pip, an upgraded system one without Python.
    if ! supported_version "$VENV/bin/python" >/dev/null || [ ! -x "$VENV/bin/pip" ]; then
        create_environment
    fi
    wanted="$(fingerprint)"
    installed="$(cat "$STAMP" 2>/dev/null || true)"
    # The development installation contains the plain one and serves both.
    if [ "$installed" = "$wanted $extra" ] || [ "$installed" = "$wanted dev" ]; then
        return
    fi
    say "Installing Perdure into .venv ..."
    rm -f "$STAMP"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --editable "$ROOT${extra:+[$extra]}" >&2 ||
        fail "pip could not install Perdure (see above); it needs a package index, so check the network."
    printf '%s\n' "$wanted $extra" >"$STAMP"
}
