# Sourced by the scripts for a bare GPU machine: Python with torch, no network, the package not
# installed. Sets $python, $out (build/gpu) and $view, and PYTHONPATH to the package as an installed
# one would look: links, with the mapped folders in their places.
python=${PYTHON:-python3}
out=$PWD/build/gpu
view=$out/view

mkdir -p "$out/site"
rm -rf "$view" && mkdir -p "$view/skyreels_rt"
for item in skyreels_rt/*; do
  case $item in
    *.so | */__pycache__) ;;
    *) ln -s "$PWD/$item" "$view/skyreels_rt/" ;;
  esac
done
ln -s "$PWD/kernels" "$view/skyreels_rt/kernels"
ln -s "$PWD/export" "$view/skyreels_rt/export"
export PYTHONPATH=$view:$out/site${PYTHONPATH:+:$PYTHONPATH}

# bring NAME: install a module that the machine lacks from a wheel in .whl/; fails if there is none.
bring() {
  "$python" -c "import $1" 2>/dev/null && return
  [ -d .whl ] && "$python" -m pip install -q --no-index --find-links .whl \
    --no-deps --target "$out/site" "$1" 2>/dev/null
}
