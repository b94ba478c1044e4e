#!/usr/bin/env bash
# Build the wheel, install it alone into an empty environment and run the verbs that need no framework, each in turn.
# Usage: tests/packaging/try_wheel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

"$python" -m venv "$place/build"
"$place/build/bin/python" -m pip --quiet --disable-pip-version-check wheel --no-deps --wheel-dir "$place" .
"$python" -m venv "$place/env"
"$place/env/bin/python" -m pip --quiet --disable-pip-version-check install "$place"/carspotter-*.whl
"$place/env/bin/python" tests/packaging/draw_photos.py "$place/photos"

export CARSPOTTER_HOME="$place/home"
mkdir "$CARSPOTTER_HOME"
cd "$place"
carspotter="$place/env/bin/carspotter"
"$carspotter" --version
"$carspotter" import "$place/photos" --study toy
"$carspotter" curate --study toy
"$carspotter" split --study toy
"$carspotter" split --study toy --verify
"$carspotter" doctor
# What needs an extra says which one, in one line, and ends with 2.
for verb in "train baseline_cnn --study toy" "train baseline_cnn --framework torch --study toy" "serve nowhere"; do
  code=0
  said=$("$carspotter" $verb 2>&1) || code=$?
  echo "$verb -> $code: $said"
  if [ "$code" != 2 ] || [[ "$said" != *"pip install 'carspotter["* ]] || [ "$(wc -l <<<"$said")" != 1 ]; then
    echo "wanted status 2 and one line that names the extra"
    exit 1
  fi
done
echo "The wheel works on its own."
