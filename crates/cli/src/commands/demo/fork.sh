# Forks until the system says no, at most @FORKS@ times. From the first fork on, bash watches with what it can do itself.
dir=$(mktemp -d) && mkfifo "$dir/clock" && : >"$dir/errors"
limit=$(ulimit -u)
exec 4<>"$dir/clock"
set -m
( i=0
  while [ $i -lt @FORKS@ ]; do sleep 60 & i=$((i + 1)); echo $i >"$dir/count"; done
  : >"$dir/done" ) 2>"$dir/errors" >/dev/null &
bomb=$!
set +m
ticks=0
while [ ! -s "$dir/errors" ] && [ ! -e "$dir/done" ] && [ $ticks -lt 1000 ]; do read -r -t 0.02 -u 4; ticks=$((ticks + 1)); done
kill -KILL -- "-$bomb"
wait "$bomb" 2>/dev/null
exec 4>&-
read -r said <"$dir/errors"
read -r count <"$dir/count"
case "$said" in
  *'Resource temporarily unavailable'*)
    # The user's own limit counts every process of this user; the control group's counts those of this sandbox.
    if [ "$limit" = unlimited ] || [ "$count" -lt $((limit / 2)) ]; then layer=cgroup; else layer=rlimit; fi
    verdict fork_bomb no $layer ;;
  *) verdict fork_bomb yes ;;
esac
echo "forks=$count"
