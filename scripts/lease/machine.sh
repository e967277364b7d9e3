#!/usr/bin/env bash
# On the GPU machine of a lease: machine.sh take NN | get SECONDS LINES
#
#   take  keep parcel .gpu/partNN; the first one brings the tree along and starts the lanes
#   get   after so many seconds, or at once where all jobs are over, say how things are and pack results into $OUT
set -uo pipefail
lease=/tmp/lease
case $1 in
take)
    mkdir -p $lease/pieces $lease/logs $lease/out $lease/models
    cp ".gpu/part$2" "$lease/pieces/$2.tmp" && mv "$lease/pieces/$2.tmp" "$lease/pieces/$2"
    if [ ! -d $lease/tree ]; then
        mkdir -p $lease/unpacking
        tar --exclude=./.gpu --exclude=./.git -cf - . | tar -xf - -C $lease/unpacking && mv $lease/unpacking $lease/tree
        cp -r .gpu/k $lease/k
        setsid nohup python3 $lease/tree/scripts/gpu_lanes.py $lease/k/lanes.json --logs $lease/logs \
            --pieces $lease/pieces --manifest $lease/k/manifest.json --into $lease/files \
            >$lease/lanes.log 2>&1 </dev/null &
        nvidia-smi -L
        nproc
        free -g | sed -n 2p
    fi
    find $lease/pieces -type f | wc -l
    ;;
get)
    for _ in $(seq "$2"); do
        if grep -q " idle$" $lease/logs/status.txt; then break; fi
        sleep 1
    done
    tail -n 40 $lease/logs/status.txt
    find $lease/logs -name '*.log' -printf '%T@ %p\n' | sort -rn | head -n 8 | cut -d' ' -f2 | while read -r log; do
        echo "== $log"
        tail -n "$3" "$log" | cut -c1-400
    done
    nvidia-smi --query-gpu=memory.used,utilization.gpu --format=csv,noheader
    free -g | sed -n 2p
    tar --exclude='*.parquet' -czf "$OUT/rest.tgz" -C $lease logs out lanes.log
    ;;
*)
    echo "machine.sh: '$1' is not known; allowed: take, get" >&2
    exit 2
    ;;
esac
