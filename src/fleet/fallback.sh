# Reads a host on which the agent cannot be: only programs that are there anyway, nothing is written.
# The caller sets: fields, more, reasons, reasons_before, apps (what nvidia-smi is asked for), every (seconds between rounds), patience
# (seconds after which the driver hangs), first (the same for its first answer: without persistence mode it initialises every GPU).
have() { command -v "$1" >/dev/null 2>&1; }
smi() { if have timeout; then timeout -s KILL "$limit" nvidia-smi "$@" 2>&1; else nvidia-smi "$@" 2>&1; fi; }
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
# Asks the driver, in a process of its own: one that hangs in the kernel is not ended by any signal, keeps
# its pipes open, and must not stop the host's own values. Whoever is told to be late says nothing more.
ask() {
    late=
    trap 'late=yes' USR1
    version=
    if [ -z "$driver" ]; then version=$(smi --query-gpu=driver_version --format=csv,noheader); fi
    if [ -n "$late" ]; then exit 1; fi
    # An old driver refuses a question with a field that it does not know: a shorter one is asked, from then on.
    while :; do
        case $short in
        0) wanted=$fields,$more,$reasons ;;
        1) wanted=$fields,$more,$reasons_before ;;
        2) wanted=$fields,$more ;;
        *) wanted=$fields ;;
        esac
        answer=$(smi --query-gpu="$wanted" --format=csv,noheader,nounits)
        status=$?
        if [ -n "$late" ]; then exit 1; fi
        case $short$answer in
        [012]*'not a valid field'*) short=$((short + 1)) ;;
        *) break ;;
        esac
    done
    if [ "$status" = 137 ] || [ "$status" = 124 ]; then
        [ -n "$late" ] || part hung
        exit 1
    fi
    if [ -n "$late" ]; then exit 1; fi
    programs=$(smi --query-compute-apps="$apps" --format=csv,noheader,nounits)
    if [ -n "$late" ]; then exit 1; fi
    part driver
    printf '%s\n' "$version" | head -n 1
    part gpus
    printf '%s\n' "$answer"
    part apps
    printf '%s\n' "$programs"
    exit $((10 + short))
}
# Hundredths of a second since the host was started.
now() { read -r up _ </proc/uptime; printf '%s%s' "${up%.*}" "${up#*.}"; }
asked=
driver=
short=0
limit=$first
trap : USR1
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
        # The one before still hangs: another one would hang as well.
        if [ -n "$asked" ] && kill -0 "$asked" 2>/dev/null; then
            part hung
        else
            begun=$(now)
            ask &
            asked=$!
            # Ends the wait below; what it waits for may be done by then.
            { sleep "$limit"; kill -USR1 $$; } >/dev/null 2>&1 &
            timer=$!
            wait "$asked"
            status=$?
            kill "$timer" 2>/dev/null
            # One that initialises its GPUs for every program is given twice what it took; one that has
            # hung begins anew.
            limit=$first
            if kill -0 "$asked" 2>/dev/null; then
                kill -USR1 "$asked" 2>/dev/null
                part hung
            else
                asked=
                case $status in
                1[0123])
                    driver=known short=$((status - 10))
                    twice=$((($(now) - begun) / 50 + 1))
                    [ "$twice" -ge "$first" ] || limit=$twice
                    [ "$limit" -ge "$patience" ] || limit=$patience
                    ;;
                esac
            fi
        fi
    else
        part none
    fi
    # Nobody reads any more: the channel is closed.
    part end || exit 0
    sleep "$every" || exit 0
done
