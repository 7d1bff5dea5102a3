# shellcheck shell=bash
# Sourced by run and full: a clean environment, and the README's two commands.

unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE
export MPLBACKEND=Agg PIP_DISABLE_PIP_VERSION_CHECK=1 PYTEST_ADDOPTS="--durations=10"
export PIP_COMPILE=0 # of all that is installed, most is never imported; the rest is compiled then, and kept

# The lines of the fenced block under the README's heading "Two commands", into the array `commands`.
read_two_commands() {
  mapfile -t commands < <(awk '
    /^## / { inside = ($0 == "## Two commands") }
    inside && /^```/ { if (fenced) exit; fenced = 1; next }
    fenced' README.md)
  if [[ ${#commands[@]} -ne 2 ]]; then
    echo "README.md: the block under \"Two commands\" must have two lines, not ${#commands[@]}" >&2
    return 1
  fi
}

# fresh_venv FOLDER: makes and enters it.
fresh_venv() {
  python3 -m venv "$1"
  # shellcheck disable=SC1091
  source "$1/bin/activate"
}

seconds_table() { # lines "NAME<tab>SECONDS<tab>RESULT" on standard input
  awk -F '\t' '{ printf "%-28s %6d s  %s\n", $1, $2, $3; total += $2 } END { printf "%-28s %6d s\n", "total", total }'
}
