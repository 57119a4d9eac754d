tidy() {
    if [ -n "$want" ]; then
        others=$(find "$dir/bin" -name 'gpudeck-*' ! -name "$want" -mmin +60 2>/dev/null)
        if [ -n "$others" ]; then
            runs=$(ls -l /proc/[0-9]*/exe 2>/dev/null)
            # The kernel names what runs by its place without links; without that name nothing is removed.
            real=$(cd "$dir/bin" 2>/dev/null && pwd -P) || others=
            for other in "$dir"/bin/gpudeck-*; do
                case $others in *"$other"*) ;; *) continue ;; esac
                case $runs in *"-> $real/${other##*/}"*) continue ;; esac
                rm -f "$other" "$dir/bin/.checked-${other##*/}"
            done
        fi
    fi
    find "$dir/bin" -name '.upload-*' -mmin +1440 -exec rm -f {} + 2>/dev/null
}
