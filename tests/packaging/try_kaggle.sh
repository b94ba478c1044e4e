#!/usr/bin/env bash
# Run each notebook alone as Kaggle would: its versions of the libraries, the package from the attached wheel, the sample
# study's archive as a data set in each of the three layouts in turn, input read-only, no net, QUICK = True.
# Usage: tests/packaging/try_kaggle.sh [PYTHON [NN …]], as in: tests/packaging/try_kaggle.sh python3.12 04 16
# TORCH names what to install of PyTorch; empty, the notebooks that need it are passed over. KAGGLE_ENV keeps the environment.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
python=${1:-python3.12}
shift || true
numbers=("$@")
place=$(mktemp -d)
trap 'chmod -R u+w "$place"; rm -rf "$place"' EXIT
env=${KAGGLE_ENV:-$place/env}
torch=${TORCH-torch}

if [ ! -x "$env/bin/python" ]; then
  "$python" -m venv "$env"
  # What Kaggle's image had in November 2026, as far as the notebooks use it; no onnxruntime.
  "$env/bin/python" -m pip --quiet --disable-pip-version-check install tensorflow-cpu==2.20.* keras==3.13.* numpy==2.0.* \
    scikit-learn==1.6.* pandas==2.2.* scipy==1.15.* matplotlib==3.10.* pillow filelock tqdm jinja2 nbclient ipykernel \
    setuptools wheel $torch
fi
"$env/bin/python" -c 'import carspotter' 2>/dev/null && { echo "carspotter is in $env; the notebooks would not need the wheel"; exit 1; }

"$root/.venv/bin/python" -m carspotter kaggle push --dry-run --user tester --out "$place/pushed" > /dev/null
cat > "$place/execute.py" <<'PY'
import sys, time, nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
cell.source = cell.source.replace("QUICK = False", "QUICK = True")
started = time.monotonic()
NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
errors = [o.text for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr"]
errors = [text for text in errors if text.strip() and "photos/s" not in text]  # the bar of unpacking is no error
print(f"ran in {time.monotonic() - started:.0f} s" + "".join(f"\nstderr: {text[:300]}" for text in errors))
PY

layouts=("carspotter-sample-2" "datasets/tester/carspotter-sample-2" "tester/carspotter-sample-2")
turn=0
failed=0
for folder in "$place"/pushed/[0-9]*; do
  name=$(basename "$folder")
  if [ ${#numbers[@]} -gt 0 ] && [[ " ${numbers[*]} " != *" ${name%%_*} "* ]]; then continue; fi
  if [ -z "$torch" ] && grep -qE 'import torch|"torch.?"' "$folder"/*.ipynb; then echo "$name: needs PyTorch, passed over"; continue; fi
  layout=${layouts[turn % 3]}
  turn=$((turn + 1))
  kaggle=$place/$name
  mkdir -p "$kaggle/working" "$kaggle/input/$layout" "$kaggle/input/${layout/sample-2/wheel}" "$kaggle/home"
  cp data/sample_2.zip "$kaggle/input/$layout/"
  cp "$place"/pushed/carspotter-wheel/*.whl "$kaggle/input/${layout/sample-2/wheel}/"
  unzip -q "$place/pushed/carspotter-wheel/results.zip" -d "$kaggle/input/${layout/sample-2/wheel}/results"  # as Kaggle does
  chmod -R a-w "$kaggle/input"
  # The wheel is installed into a copy of the environment, so that no notebook finds another's.
  "$python" -m venv --without-pip --system-site-packages "$kaggle/python" > /dev/null
  libraries=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$libraries" > "$("$kaggle/python/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
  code=0
  (cd "$kaggle/working" && env -i PATH="$PATH" LANG=C.UTF-8 HOME="$kaggle/home" KAGGLE_KERNEL_RUN_TYPE=Batch \
    KAGGLE_URL_BASE=https://www.kaggle.com OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" \
    unshare --net --map-root-user sh -c 'ip link set lo up 2>/dev/null; exec "$@"' sh \
    "$kaggle/python/bin/python" "$place/execute.py" "$folder/$name.ipynb") > "$place/said" 2>&1 || code=$?
  echo "$name ($layout): $([ $code = 0 ] && tail -n 3 "$place/said" || echo "FAILED"; [ $code = 0 ] || tail -n 12 "$place/said")"
  [ $code = 0 ] || failed=1
  chmod -R u+w "$kaggle" && rm -rf "$kaggle"
done
exit $failed
