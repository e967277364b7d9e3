#!/usr/bin/env bash
# On the GPU machine of a lease: machine.sh take NN | get SECONDS LINES
#
#   take  keep parcel .gpu/partNN; the first one brings the tree along and starts the lanes
#   get   after so many seconds, or at once where nothing is left to wait for, say how things are and pack results into
#         $OUT. Nothing is left where all jobs are over, no parcel came, or parcels are missing and no job runs.
set -uo pipefail
lease=${LEASE:-/tmp/lease}
missing() {
    local name
    while read -r name; do
        if [ ! -f "$lease/pieces/$name" ]; then echo "$name"; fi
    done <$lease/k/parcels.txt
}
over() {
    if grep -q " idle$" $lease/logs/status.txt; then return 0; fi
    [ -n "$(missing)" ] && [ "$(grep -c ' begin ' $lease/logs/status.txt)" = "$(grep -c ' end ' $lease/logs/status.txt)" ]
}
case $1 in
take)
    mkdir -p $lease/pieces $lease/logs $lease/out $lease/models
    cp ".gpu/part$2" "$lease/pieces/$2.tmp" && mv "$lease/pieces/$2.tmp" "$lease/pieces/$2"
    if [ ! -d $lease/tree ]; then
        mkdir -p $lease/unpacking
        tar --exclude=./.gpu --exclude=./.git -cf - . | tar -xf - -C $lease/unpacking && mv $lease/unpacking $lease/tree
        cp -r .gpu/k $lease/k
        : >$lease/logs/status.txt
        setsid nohup python3 $lease/tree/scripts/gpu_lanes.py $lease/k/lanes.json --logs $lease/logs \
            --pieces $lease/pieces --manifest $lease/k/manifest.json --into $lease/files \
            >$lease/lanes.log 2>&1 </dev/null &
        nvidia-smi -L
        nproc
        free -g | sed -n 2p
        # what SGLang compiles its page hashes with, for importance files and storage
        ls /usr/include/openssl/sha.h /usr/lib/x86_64-linux-gnu/libcrypto.so 2>&1
    fi
    find $lease/pieces -type f | wc -l
    ;;
get)
    if [ ! -d $lease/tree ]; then
        echo "machine.sh: no parcel is here; take them before get" >&2
        exit 3
    fi
    for _ in $(seq "$2"); do
        if over; then break; fi
        sleep 1
    done
    for name in $(missing); do echo "parcel $name is missing"; done
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
