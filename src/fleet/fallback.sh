# Reads a host on which the agent cannot be: only programs that are there anyway, nothing is written.
# The caller sets: fields, more, apps (what nvidia-smi is asked for), every (seconds).
have() { command -v "$1" >/dev/null 2>&1; }
# A driver that hangs must not stop the host's own values.
smi() { if have timeout; then timeout -s KILL 10 nvidia-smi "$@" 2>&1; else nvidia-smi "$@" 2>&1; fi; }
part() { printf 'gpudeck:%s\n' "$1"; }
part facts
uname -n
uname -r
uname -m
id -un
sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"' | head -n 1
part cpus
grep -c '^processor' /proc/cpuinfo 2>/dev/null
part boot
cat /proc/sys/kernel/random/boot_id 2>/dev/null
part driver
if have nvidia-smi; then smi --query-gpu=driver_version --format=csv,noheader | head -n 1; fi
known=$fields,$more
while :; do
    part stat
    head -n 1 /proc/stat
    part load
    cat /proc/loadavg
    part memory
    grep -E '^Mem(Total|Available):' /proc/meminfo
    part uptime
    cat /proc/uptime
    if have nvidia-smi; then
        answer=$(smi --query-gpu="$known" --format=csv,noheader,nounits)
        status=$?
        case $answer in
        *'not a valid field'*)
            known=$fields
            answer=$(smi --query-gpu="$known" --format=csv,noheader,nounits)
            status=$?
            ;;
        esac
        if [ "$status" = 137 ] || [ "$status" = 124 ]; then
            part hung
        else
            part gpus
            printf '%s\n' "$answer"
            part apps
            smi --query-compute-apps="$apps" --format=csv,noheader,nounits
        fi
    else
        part none
    fi
    # Nobody reads any more: the channel is closed.
    part end || exit 0
    sleep "$every" || exit 0
done
