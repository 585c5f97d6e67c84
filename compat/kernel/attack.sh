# Inside the emulated machine: for root and for a user, in a login's session of theirs as `ssh` and `login` open one. What is
# limited there is so because systemd was asked.
echo "== kernel $(uname -r)"
chmod 755 /palisade
for who in root agent; do
  # The way out is the same for both; where there are no privileges there are more ways for it to fail.
  suites=sandbox
  [ "$who" = root ] || suites='sandbox egress'
  home=/palisade/$who
  install -d -o "$who" -g "$who" "$home"
  cat >"$home/session" <<END
export HOME=$home TMPDIR=$home
ulimit -n 65536
cd
/palisade/palisade doctor | sed 's/^\(ok  \|warn\|FAIL\) /\1 $who: /'
/palisade/palisade demo >demo.log 2>&1
status=\$?
[ \$status -eq 0 ] || cat demo.log
echo "== demo of $who: \$status"
for suite in $suites; do
  echo "== \$suite test of $who"
  /palisade/palisade \$suite test --output json
  echo "== end of \$suite test of $who"
done
END
  systemd-run --quiet --wait --pipe --uid="$who" -p PAMName=login bash "$home/session" 2>&1
done
