#!/bin/sh
# Print the newest Python that `constraints/` has package versions for. Print `python3` if there is
# none. A Python is on PATH, in pyenv's folder or known to uv.
cd "$(dirname "$0")/.." || exit

# Run the Python, because pyenv's commands may not run, and Debian's Python may lack ensurepip.
works() {
  "$1" -c "import ensurepip, sys, venv; assert '%d.%d' % sys.version_info[:2] == '$2'" 2>/dev/null
}

for version in $(ls constraints | sed -n 's/^python\(.*\)\.txt$/\1/p' | sort -t . -k 2 -nr); do
  pyenv=$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")
  for python in "python$version" "$pyenv/versions/$version".*/bin/python \
    "$(uv python find --system "$version" 2>/dev/null)"; do
    if works "$python" "$version"; then
      echo "$python"
      exit
    fi
  done
done
echo python3
