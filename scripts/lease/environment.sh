# What a job of a lease needs in its shell, sourced with a version of SGLang: . environment.sh VERSION
lease=/tmp/lease
export O=$lease/out L=$lease/logs K=$lease/k CODER=$lease/models/qwen2.5-coder-1.5b-instruct
export PYTHONPATH=$lease/package-$1:$lease/site-$1:$lease/tree/scripts
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 TQDM_DISABLE=1
export HOME=$lease/home-$1
mkdir -p "$O" "$L" "$HOME"
cd $lease/tree || exit
