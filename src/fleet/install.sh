# Finds the host-local state directory of the agent and looks whether its binary is there.
# The caller sets: base (may be empty), want (file name of the binary, may be empty), sum (its hash),
# mine (names the uploads of this controller).
umask 077
uid=$(id -u)
guarded=no
if [ -z "$base" ]; then
    if [ "$uid" = 0 ]; then
        base=/var/lib/gpudeck
    else
        base=/var/tmp/gpudeck-$uid
        guarded=yes
    fi
fi
machine=$({ tr -cd '0-9a-f' </etc/machine-id | cut -c1-32; } 2>/dev/null)
[ -n "$machine" ] || machine=$(uname -n | tr -cd 'A-Za-z0-9-' | cut -c1-64)
[ -n "$machine" ] || machine=host
dir=$base/$machine
say system "$(uname -s)"
say arch "$(uname -m)"
say state_dir "$dir"
# /var/tmp is everybody's: somebody else may have been there before us, or just now.
foreign() { [ "$guarded" = yes ] && { [ -L "$base" ] || { [ -e "$base" ] && [ ! -O "$base" ]; }; }; }
if foreign; then give_up owner "$base"; fi
why=$(mkdir -p "$dir/bin" 2>&1) || give_up write "$why"
if foreign; then give_up owner "$base"; fi
[ -O "$dir" ] || give_up owner "$dir"
chmod 700 "$dir" 2>/dev/null
probe=$dir/bin/.probe.$$
why=$({ printf '#!/bin/sh\nexit 0\n' >"$probe"; } 2>&1) || {
    # Of a full disk and of a quota that is used up some shells say no more than "I/O error"; `cat` has the system's words.
    case $why in *"I/O error"*)
        said=$({ echo '#!/bin/sh' | cat >"$probe"; } 2>&1) && said=
        why=${said:-disk or quota full ($why)}
        ;;
    esac
    rm -f "$probe"
    set -- $(df -Pk "$dir" 2>/dev/null | tail -n 1)
    [ "${4:-1}" != 0 ] || why="No space left on device"
    give_up write "$why"
}
chmod 700 "$probe"
"$probe" 2>/dev/null || {
    rm -f "$probe"
    give_up noexec "$dir"
}
rm -f "$probe"
set -- $(df -Pk "$dir" 2>/dev/null | tail -n 1)
say free_kib "${4:-}"
if [ -n "$want" ]; then
    installed=$dir/bin/$want
    if [ -f "$installed" ]; then
        # Read whole again only when its stat says that it is not the file that was checked.
        checked=$(cat "$dir/bin/.checked-$want" 2>/dev/null)
        now=$(stamp "$installed")
        if [ -n "$now" ] && [ "$checked" = "$sum $now" ]; then
            say have "$sum"
        else
            got=$(digest "$installed")
            say have "$got"
            if [ "$got" = "$sum" ]; then printf '%s' "$sum $now" >"$dir/bin/.checked-$want"; fi
        fi
    fi
    # An upload of ours that broke off goes on; one of somebody who is gone is taken over.
    part=$dir/bin/.upload-$want-$mine
    if [ ! -f "$part" ]; then
        old=$(find "$dir/bin" -name ".upload-$want-*" -mmin +2 2>/dev/null | head -n 1)
        if [ -n "$old" ]; then mv "$old" "$part" 2>/dev/null; fi
    fi
    if [ -f "$part" ]; then say part_bytes "$(wc -c <"$part" | tr -d ' ')"; fi
fi
tidy
say done 1
